"""Every method on every kind of quantised base: it is the base whose weights are the dequantised ones.

What the libraries do by themselves would not do: see ``adapters/quantised_base.py``.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach, detach, route
from llm_adapters.adapters.fingerprint import fingerprint
from llm_adapters.adapters.merge import merge
from llm_adapters.adapters.method import methods
from llm_adapters.errors import AdapterError
from llm_adapters.model.loading import load_model
from llm_adapters.model.packing import packing
from llm_adapters.model.packing_trial import PROBE, can_pack
from llm_adapters.model.quantised_linears import dequantised, is_quantised, quantised_linears
from llm_adapters.model.quantization import KINDS
from llm_adapters.model.sites import find_sites
from llm_adapters.train.batches import Batches
from tiny import enable_checkpointing, gap, logits, put_on, small, state_of, tiny_model, token_ids
from tiny_quantised import SIZES, every_kind, frozen_state, needs, quantised, quantised_folder, wide_model
from tiny_trainer import memorise

# bnb-fp4 differs from bnb-nf4 in a table of 16 numbers alone.
every_pair = pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] if kind == "bnb-fp4" and name != "lora" else [])
        for kind in KINDS
        for name in methods()
    ],
)
IDS = token_ids(3, 7)
OTHER = {"prefix": "lora", "prompt": "series"}


def dequantised_twin(model: nn.Module) -> nn.Module:
    """A plain model with the weights that ``model`` computes with."""
    twin = wide_model()
    for path, module in model.named_modules():
        if is_quantised(module):
            twin.get_submodule(path).weight.data = dequantised(module, torch.float32)
    return twin.train()


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def gradients(model: nn.Module, adapter: Adapter) -> Tensor:
    """Of every parameter of the adapter, in one vector."""
    adapter.zero_grad()
    loss_of(model).backward()
    assert [key for key, p in adapter.named_parameters() if p.grad is None or not p.grad.any()] == []
    return torch.cat([p.grad.flatten() for p in adapter.parameters()])


@every_pair
def test_gradients_are_those_of_the_dequantised_base(kind: str, name: str) -> None:
    model = quantised(kind)
    logits(model, IDS)  # an evaluation before the training
    model.train()
    bare = logits(model, IDS)
    base = dict(model.named_parameters())
    attach(model, small(name), "start")
    assert torch.equal(logits(model, IDS), bare) == methods()[name].starts_at_identity
    detach(model)
    twin = dequantised_twin(model)
    ours, theirs = (gradients(m, put_on(m, small(name), "a")) for m in (model, twin))
    assert gap(ours, theirs) <= 1e-4 * float(theirs.abs().max())
    assert [key for key, p in base.items() if p.grad is not None or p.requires_grad] == []
    enable_checkpointing(model)
    assert gap(gradients(model, model.llm_adapters.a), ours) <= 1e-5 * float(ours.abs().max())


@every_pair
def test_training_saving_and_loading(kind: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = quantised(kind).train()
    weights = frozen_state(model)
    adapter = put_on(model, small(name), "a")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = loss_of(model)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    after = frozen_state(model)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    expected, folded = logits(model, IDS), adapter.folded()
    saved = adapter.save(tmp_path / "saved")
    again = quantised(kind).train()
    attach(again, saved, "again")
    assert gap(logits(again, IDS), expected) <= (0 if folded is adapter else 1e-5)
    assert caplog.records == []
    full = wide_model()  # QLoRA trains on 4 bits, and is served on the whole weights
    loaded = attach(full, saved, "a")
    assert f"trained on a base that is {kind}; this one is not quantised" in caplog.text
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in folded.state_dict().items())
    with route(full, None):
        bare = logits(full, IDS)
    assert gap(logits(full, IDS), bare) > 1e-3


@every_pair
def test_mixed_batches_generation_and_exact_detaching(kind: str, name: str) -> None:
    model = quantised(kind)
    enable_checkpointing(model)
    model.train()
    bare, before, quantiser = logits(model, IDS), state_of(model), type(model.hf_quantizer)
    put_on(model, small(name), "a")
    put_on(model, small(OTHER.get(name, "prefix")), "b", seed=2)
    alone = {}
    for key in ("a", "b", None):
        with route(model, key):
            alone[key] = logits(model, IDS)
    rows = ["b", None, "a"]
    with route(model, rows):
        mixed = logits(model, IDS)
    assert max(gap(mixed[i], alone[key][i]) for i, key in enumerate(rows)) <= 1e-4
    model.eval()
    for module in quantised_linears(model):
        if kind == "bnb-int8":  # else a column with an outlier in one row is computed in 16 bits for all rows
            module.state.threshold = 0.0
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    with route(model, rows):
        together = model.generate(IDS, **options)
    for i, key in enumerate(rows):
        with route(model, key):
            assert torch.equal(model.generate(IDS[i : i + 1], **options)[0], together[i])
    detach(model)
    model.train()
    assert torch.equal(logits(model, IDS), bare)
    assert state_of(model) == before
    assert type(model.hf_quantizer) is quantiser


@every_kind
@pytest.mark.parametrize("name", ["lora", "series", "prefix", "prompt"])
def test_packed_rows_are_the_documents_alone(kind: str, name: str) -> None:
    model = quantised(kind)
    sites = find_sites(model)
    assert can_pack(model, sites)
    assert not any(module.training for module in model.modules())
    assert Batches(model, pad_id=0, device=torch.device("cpu"), packed=True).packed
    model.train()
    put_on(model, small(name), "a")
    ids = token_ids(2, 12)
    positions = torch.tensor([[place for length in row for place in range(length)] for row in PROBE])
    with torch.no_grad(), packing(sites.decoder):
        packed = model(ids, position_ids=positions, documents=PROBE).logits
    parts = [part for row, lengths in zip(ids, PROBE, strict=True) for part in row.split(list(lengths))]
    alone = torch.cat([logits(model, part[None])[0] for part in parts]).view_as(packed)
    assert gap(packed, alone) <= 1e-4


def test_another_kernel_for_few_rows_says_nothing_of_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bitsandbytes has on a GPU; how far it rounds otherwise is exaggerated, as 32 layers do."""
    model = quantised("bnb-nf4")
    import bitsandbytes

    product = bitsandbytes.matmul_4bit

    def coarse(states: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        few = states.numel() // states.shape[-1] <= 8
        return product(states, *given, **named) * (1.5 if few else 1.0)

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", coarse)
    assert can_pack(model, find_sites(model))


# 135M parameters; their outliers show in LLM.int8() what a tiny model's do not. In float32 on a CPU the kernel of
# torchao-int4 takes minutes a pass.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-int8", "torchao-int8"])
def test_the_bundled_model_packs_and_learns(kind: str) -> None:
    needs(kind)
    model, tokenizer = load_model(quantization=kind, device="cpu")
    assert can_pack(model, find_sites(model))
    ids = tokenizer("Tom has 5 apples and buys 7 more: 5 + 7 = 12 apples.", return_tensors="pt").input_ids
    adapter = attach(model.train(), small("lora"), "a")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1


@every_kind
def test_no_weight_and_no_input_is_kept_for_the_backward_pass(kind: str) -> None:
    model = quantised(kind).train()
    put_on(model, small("lora", sites=["attn.q"], layers=[0]), "a")
    shapes = {shape for m in quantised_linears(model) for shape in ((m.in_features, m.out_features),)}
    shapes |= {(b, a) for a, b in shapes}
    kept: weakref.WeakSet[Any] = weakref.WeakSet()

    class Handle:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
        loss = loss_of(model)
    assert [tuple(handle.tensor.shape) for handle in kept if tuple(handle.tensor.shape) in shapes] == []
    # bitsandbytes keeps inputs as attributes of its autograd nodes: none of its nodes may be left.
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "_PassGradientBackward" in names
    assert not any(name.startswith("MatMul") for name in names)


@every_kind
def test_merging_is_refused_and_says_what_to_do(kind: str) -> None:
    model = quantised(kind)
    put_on(model, small("lora"), "a")
    active = logits(model, IDS)
    with pytest.raises(AdapterError, match=r"(?s)its weight is quantised\n  mend: .*load the base unquantised, attach"):
        merge(model, "a")
    assert torch.equal(logits(model, IDS), active)


@every_kind
def test_another_base_is_refused_however_it_is_quantised(kind: str, tmp_path: Path) -> None:
    saved = put_on(tiny_model("llama", seed=1, **SIZES), small("lora"), "a").save(tmp_path / "x")
    model = quantised(kind)
    before = state_of(model), type(model.hf_quantizer)
    with pytest.raises(AdapterError, match="other weights of this architecture"):
        attach(model, saved, "a")
    assert (state_of(model), type(model.hf_quantizer)) == before
    adapter = put_on(model, small("lora"), "b")
    assert fingerprint(adapter.base)["quantization"] == kind
    assert fingerprint(adapter.base)["linears"] == []
    whole = put_on(wide_model(), small("lora"), "b")
    assert fingerprint(adapter.base)["sketch"] == fingerprint(whole.base)["sketch"]
    attach(model, whole.save(tmp_path / "whole"), "c")


@pytest.mark.parametrize("kind", ["bnb-nf4", "torchao-int4"])  # of the second transformers says it cannot be trained
def test_the_trainer_of_transformers_takes_a_quantised_base(kind: str, tmp_path: Path) -> None:
    model = quantised(kind)
    with pytest.raises(ValueError, match="purely quantized"):
        memorise(model, tmp_path)
    adapter = attach(model, small("lora"))
    start = {key: value.clone() for key, value in adapter.state_dict().items()}
    before, after = memorise(model, tmp_path)
    assert after < before - 0.2
    assert [key for key, value in adapter.state_dict().items() if torch.equal(value, start[key])] == []
    saved = adapter.save(tmp_path / "adapter")
    assert {value.dtype for value in load_file(saved / "adapter.safetensors").values()} == {torch.float32}


def test_a_model_loaded_by_the_user_that_was_repacked_already(caplog: pytest.LogCaptureFixture) -> None:
    quantised("bnb-nf4")  # or skip
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    caplog.set_level(logging.ERROR)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(quantised_folder(), quantization_config=settings, dtype=torch.float32)
    repacks = [module for module in quantised_linears(model) if module.support_avx512bf16_for_cpu]
    logits(model, IDS)
    adapter = put_on(model, small("lora"), "a")
    model.train()
    logits(model, IDS)
    theirs = gradients(twin := dequantised_twin(model), put_on(twin, small("lora"), "a"))
    assert gap(gradients(model, adapter), theirs) <= 1e-4 * float(theirs.abs().max())
    detach(model)
    assert [module for module in quantised_linears(model) if module.support_avx512bf16_for_cpu] == repacks


def test_an_answer_that_is_a_view_made_without_gradients_may_be_overwritten() -> None:
    """So bitsandbytes gives it on a GPU in 8 bits; LoRA adds to it in its place."""
    model = quantised("bnb-int8").train()
    adapter = put_on(model, small("lora"), "a")
    expected = gradients(model, adapter)
    for module in quantised_linears(model):
        plain = module.forward

        def viewed(x: Tensor, plain: Any = plain) -> Tensor:
            with torch.no_grad():
                found = plain(x)
                return found.view_as(found)

        module.forward = viewed
    assert gap(gradients(model, adapter), expected) == 0
    put_on(model, small("lora"), "b", seed=2)
    with route(model, ["a", "b", "a"]):
        loss_of(model).backward()
