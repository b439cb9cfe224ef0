"""Packed examples train as each would alone: the same loss and the same gradients, for every method."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_adapters.adapters.attach import attach
from llm_adapters.adapters.method import methods
from llm_adapters.data.encoding import Encoded
from llm_adapters.model import packing as packing_module
from llm_adapters.model.packing import packing
from llm_adapters.model.packing_trial import can_pack
from llm_adapters.model.sites import find_sites
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import count
from llm_adapters.train.loss import labelled_tokens, summed_loss
from tiny import ALL_FAMILIES, put_on, small, tiny_model
from tiny_training import examples, summed_gradients

CPU = torch.device("cpu")
PADDED = {
    "bloom", "gptj", "gpt_neo", "gemma2", "falcon:multi_query", "falcon:new", "mpt", "gpt_oss", "llama4_text",
    "stablelm", "codegen", "xglm", "nemotron",
}  # fmt: skip
"""Families whose attention does not come through transformers' interface, or takes no positions."""


def _gradients(model: Any, adapter: Any, rows: list[Encoded], *, packed: bool, size: int) -> tuple[float, list[Tensor]]:
    batches = Batches(model, pad_id=0, device=CPU, packed=packed)
    assert batches.packed == packed
    total = 0.0
    for piece in batches.pieces([len(row.input_ids) for row in rows], size):
        with batches.in_force():
            loss = summed_loss(model, batches.tensors([rows[index] for index in piece]))
            loss.backward()
        total += float(loss.detach())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.parameters()]
    for parameter in adapter.parameters():
        parameter.grad = None
    return total, found


def _expect_equal(model: Any, adapter: Any, rows: list[Encoded]) -> None:
    """Of a model in float64: in float32 the two round in other places, by up to a millionth of the largest."""
    model.train()
    alone, gradients = _gradients(model, adapter, rows, packed=False, size=1)
    packed, packed_gradients = _gradients(model, adapter, rows, packed=True, size=4)
    assert packed == pytest.approx(alone, rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    assert scale > 0
    for gradient, other in zip(gradients, packed_gradients, strict=True):
        assert float((gradient - other).abs().max()) <= 1e-12 * scale


@pytest.mark.parametrize("name", list(methods()))
def test_packed_is_unpacked(name: str) -> None:
    model = tiny_model("llama").double()
    _expect_equal(model, put_on(model, small(name), "a"), examples(9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(methods()))
def test_in_half_precision_gradients_are_those_of_float32_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    attended_in = set()

    def watched(module: Any, query: Tensor, *given: Any, **named: Any) -> Any:
        attended_in.add((query.dtype, torch.is_grad_enabled()))
        return sdpa(module, query, *given, **named)

    sdpa = packing_module.sdpa_attention_forward
    monkeypatch.setattr(packing_module, "sdpa_attention_forward", watched)
    half = tiny_model("llama").to(dtype)
    rounded = copy.deepcopy(half).float()  # the same weights
    shares = name not in ("prefix", "prompt", "p_tuning")
    rows = examples(9, beginning=4 if shares else 0)
    loss, found = summed_gradients(half, put_on(half, small(name), "a"), rows, packed=True, size=4, sharing=shares)
    assert (torch.float32, True) in attended_in
    assert (dtype, True) not in attended_in  # its backward pass is slow
    plain, expected = summed_gradients(
        rounded, put_on(rounded, small(name), "a"), rows, packed=True, size=4, sharing=shares
    )
    assert loss == pytest.approx(plain, rel=1e-2)
    assert float((found - expected).norm()) <= 0.05 * float(expected.norm())


def test_a_plan_counts_the_float32_copies_of_a_cpu_and_of_no_gpu() -> None:
    with torch.device("meta"):
        model = copy.deepcopy(tiny_model("llama")).bfloat16().to("meta")
    with WithoutNumbers():
        adapter = attach(model, small("lora"), "a")
    model.train()
    on_cpu, elsewhere = (
        count(model, Batches(model, pad_id=0, device=CPU, on_cpu=on_cpu), examples(4), accumulating=False)
        for on_cpu in (True, False)
    )
    assert adapter.count() > 0
    assert on_cpu.saved_bytes > elsewhere.saved_bytes


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
def test_packed_is_unpacked_under_gradient_checkpointing(name: str) -> None:
    model = tiny_model("llama").double()
    adapter = put_on(model, small(name), "a")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _expect_equal(model, adapter, examples(9))


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_documents_longer_than_a_sliding_window(name: str) -> None:
    model = tiny_model("gemma3_text").double()
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4
    model.config.sliding_window = 4
    rows = examples(5)
    assert max(len(row.input_ids) for row in rows) > 4
    _expect_equal(model, put_on(model, small(name), "a"), rows)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_a_family_packs_only_if_it_gives_the_same(name: str) -> None:
    model = tiny_model(name)
    batches = Batches(model, pad_id=0, device=CPU)
    assert batches.packed == (name not in PADDED)
    rows = examples(4)
    with torch.no_grad(), batches.in_force():
        together = float(summed_loss(model, batches.tensors(rows)))
    single = Batches(model, pad_id=0, device=CPU, packed=False)
    with torch.no_grad():
        alone = sum(float(summed_loss(model, single.tensors([row]))) for row in rows)
    assert together == pytest.approx(alone, rel=1e-5)


def test_state_that_flows_on_between_documents_is_found_out() -> None:
    model = copy.deepcopy(tiny_model("llama"))

    def leak(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return output + output.roll(1, dims=1)

    model.get_decoder().layers[0].mlp.register_forward_hook(leak)
    assert not can_pack(model, find_sites(model))


def test_attention_is_the_models_own_again_afterwards() -> None:
    model = tiny_model("llama")
    decoder = find_sites(model).decoder

    def fail() -> None:
        with packing(decoder):
            assert model.config._attn_implementation != "sdpa"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_every_example_is_in_one_piece_and_none_is_too_large(packed: bool, size: int) -> None:
    lengths = [5, 30, 7, 7, 1, 12, 30, 2, 9, 4]
    pieces = Batches(tiny_model("llama"), pad_id=0, device=CPU, packed=packed).pieces(lengths, size)
    assert sorted(index for piece in pieces for index in piece) == list(range(10))
    assert all(1 <= len(piece) <= size for piece in pieces)
    assert len(pieces) == -(-10 // size)
    tokens = [sum(lengths[index] for index in piece) for piece in pieces]
    if packed and size == 3:
        assert max(tokens) < 40  # by length alone it would be 30 + 30 + 12
    assert labelled_tokens([7, -100, 3]) == 1
