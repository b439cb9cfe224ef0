"""What every method must do on every family; a new file in ``adapters/methods`` is covered as it stands.

Parameters are drawn at random before values are compared, so that no test passes because an adapter does nothing.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach, detach, disable, enable, route
from llm_adapters.adapters.merge import merge, unmerge
from llm_adapters.adapters.method import method, methods
from llm_adapters.errors import AdapterError
from tiny import VOCABULARY, Letters, enable_checkpointing, gap, logits, randomise, small, tiny_model, token_ids

FAMILIES = ["llama", "bloom", "gptj", "qwen3", "gemma3_text"]
NAMES = list(methods())
# Forms of a method that its defaults do not reach: what is folded away on save, biases, norms, learned scales.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora+rslora": ("lora", {"rslora": True, "sites": ["attn.q|attn.qkv"], "layers": "last:1"}),
    "prefix+mlp": ("prefix", {"reparametrization": 7, "init": "random"}),
    "prefix+layer": ("prefix", {"layers": [1]}),
    "p_tuning+lstm": ("p_tuning", {"encoder": "lstm", "hidden": 5}),
    "series+all": ("series", {"bias": True, "norm": "both", "learned_scale": True}),
    "scaled_parallel+norm": ("scaled_parallel", {"norm": "before", "learned_scale": True}),
    "series_input+block": ("series_input", {"sites": ["block", "attn"], "bias": True, "norm": "after"}),
}
WITH_VARIANTS = [*NAMES, *VARIANTS]

every = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize("name", WITH_VARIANTS)
pytestmark = pytest.mark.parametrize("family", FAMILIES)


def made(name: str, **fields: Any) -> Any:
    """A small method, by its name or the name of a variant."""
    kind, more = VARIANTS.get(name, (name, {}))
    return small(kind, **{**more, **fields})


def put_on(model: nn.Module, name: str, key: str = "a", **fields: Any) -> Adapter:
    """A randomised adapter; the same numbers for the same method and key."""
    seed = int(hashlib.sha256(f"{name}/{key}".encode()).hexdigest()[:6], 16)
    return randomise(attach(model, made(name, **fields), key, tokenizer=Letters()), seed=seed)


def other_than(name: str) -> str:
    """The next method, so that each is paired with a method of another type."""
    return NAMES[(NAMES.index(name) + 3) % len(NAMES)]


def positions(mask: Tensor) -> Tensor:
    """Position ids as ``generate`` counts them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def padded(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of rows (T_i,)."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


def loss_of(model: nn.Module, ids: Tensor, **inputs: Any) -> Tensor:
    return model(input_ids=ids, labels=ids, **inputs).loss


def gradients(adapter: Adapter) -> dict[str, Tensor]:
    found = {key: p.grad for key, p in adapter.named_parameters() if p.grad is not None}
    adapter.zero_grad()
    return found


def hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every hook of every module."""
    for path, module in model.named_modules():
        for table, value in vars(module).items():
            if table.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and value:
                yield path, table


# -- acting and resting -----------------------------------------------------------------------------


@every
def test_starts_at_identity(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(3, 7)
    bare = logits(model, ids)
    attach(model, made(name), "a")
    if methods()[name].starts_at_identity:
        assert torch.equal(logits(model, ids), bare)
    else:
        assert gap(logits(model, ids), bare) > 1e-3


@every
def test_acts_when_enabled_and_rests_when_not(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(3, 7)
    bare = logits(model, ids)
    put_on(model, name)
    active = logits(model, ids)
    assert gap(active, bare) > 1e-2
    with route(model, None):
        assert torch.equal(logits(model, ids), bare)
    disable(model, "a")
    assert torch.equal(logits(model, ids), bare)
    with route(model, "a"):
        assert torch.equal(logits(model, ids), active)
    enable(model, "a")
    assert torch.equal(logits(model, ids), active)


@every_variant
def test_count_is_the_number_of_parameters(family: str, name: str) -> None:
    model = tiny_model(family)
    for recipe in (made(name), method(VARIANTS.get(name, (name, {}))[0])):  # small, and at the defaults
        adapter = attach(model, recipe, "a")
        assert recipe.count(adapter.base) == sum(p.numel() for p in adapter.parameters()) > 0
        detach(model)


# -- gradients --------------------------------------------------------------------------------------


@every_variant
def test_gradients_reach_the_adapter_only(family: str, name: str) -> None:
    model, ids = tiny_model(family).train(), token_ids(3, 7)
    base = dict(model.named_parameters())
    adapter = attach(model, made(name), "a")
    loss_of(model, ids).backward()
    assert gradients(adapter).keys() == dict(adapter.named_parameters()).keys()
    randomise(adapter)
    loss_of(model, ids).backward()
    assert [key for key, gradient in gradients(adapter).items() if not gradient.abs().max() > 1e-7] == []
    assert [key for key, p in base.items() if p.grad is not None or p.requires_grad] == []


@every_variant
def test_gradients_are_the_slope_of_the_loss(family: str, name: str) -> None:
    model, ids = tiny_model(family).double(), token_ids(2, 6)
    adapter = put_on(model, name)
    weights = torch.randn(2, 6, VOCABULARY, dtype=torch.float64)
    (model(ids).logits * weights).sum().backward()
    found = gradients(adapter)
    step = {key: torch.randn_like(p) for key, p in adapter.named_parameters()}
    slope = sum(float((found[key] * step[key]).sum()) for key in step)
    errors = []
    for size in (1e-3, 1e-4):  # a ReLU may bend within the longer step, the shorter is lost in single-precision norms
        values = []
        for move in (size, -2 * size, size):  # θ + ε·step, θ − ε·step, and back
            with torch.no_grad():
                for key, p in adapter.named_parameters():
                    p.add_(move * step[key])
            values.append(float((logits(model, ids) * weights).sum()))
        errors.append(abs(slope - (values[0] - values[1]) / (2 * size)))
    assert min(errors) <= 0.01 * sum(float((gradient**2).sum()) for gradient in found.values()) ** 0.5


@every
def test_checkpointing_changes_nothing(family: str, name: str) -> None:
    model, ids = tiny_model(family).train(), token_ids(3, 7)
    adapter, other = put_on(model, name), put_on(model, other_than(name), "b")
    runs = []  # of each layer's attention
    layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[0]
    next(iter(layer.children())).register_forward_hook(lambda *_: runs.append(1))
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_checkpointing(model)
        for rows in ("a", ["a", None, "b"]):
            runs.clear()
            with route(model, rows):
                loss = loss_of(model, ids)
            forward_runs = len(runs)
            loss.backward()  # outside of the route
            assert len(runs) - forward_runs == int(checkpointing)  # the layer is computed again, or is not
            results.append((loss.detach(), gradients(adapter), gradients(other)))
    for plain, checkpointed in zip(results[:2], results[2:], strict=True):
        assert gap(plain[0], checkpointed[0]) <= 1e-6
        for before, after in zip(plain[1:], checkpointed[1:], strict=True):
            assert before.keys() == after.keys()
            assert all(gap(before[key], after[key]) <= 1e-6 for key in before)
    assert results[0][1].keys() == dict(adapter.named_parameters()).keys()
    assert results[3][2].keys() == dict(other.named_parameters()).keys()


# -- taking off, saving, merging --------------------------------------------------------------------


@every
def test_detach_is_exact(family: str, name: str) -> None:
    model, ids = tiny_model(family).train(), token_ids(3, 7)
    next(model.parameters()).requires_grad_(False)
    enable_checkpointing(model)
    bare, before = logits(model, ids), [*hooks(model)]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    modules = [path for path, _ in model.named_modules()]
    functions = [vars(m).get("_gradient_checkpointing_func") for m in model.modules()]

    adapter = put_on(model, name)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    loss_of(model, ids).backward()
    optimizer.step()
    assert len([*hooks(model)]) > len(before)
    detach(model, "a")

    assert torch.equal(logits(model, ids), bare)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
    assert [path for path, _ in model.named_modules()] == modules
    assert [vars(m).get("_gradient_checkpointing_func") for m in model.modules()] == functions
    assert [*hooks(model)] == before
    assert all(p.grad is None for p in model.parameters())


@every_variant
def test_save_and_load(family: str, name: str, tmp_path: Path) -> None:
    model, ids = tiny_model(family), token_ids(3, 7)
    adapter = put_on(model, name)
    expected, folded = logits(model, ids), adapter.folded()
    adapter.save(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["adapter.json", "adapter.safetensors"]
    detach(model)
    loaded = attach(model, tmp_path / "saved", "again")
    assert loaded.methods == folded.methods
    assert loaded.methods[0].count(loaded.base) == loaded.count() == folded.count()
    assert not any("mlp" in key or "lstm" in key for key in loaded.state_dict())
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in folded.state_dict().items())
    if folded is adapter:
        assert torch.equal(logits(model, ids), expected)
    else:
        assert gap(logits(model, ids), expected) <= 1e-6


@every
def test_merge_is_the_same_function(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(3, 7)
    bare = logits(model, ids)
    adapter = put_on(model, name)
    active = logits(model, ids)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    linear = [
        placed.insertion == "parallel" and placed.site.is_linear and placed.form.delta_weight() is not None
        for placed in adapter.placed()
    ]
    assert all(linear) or name != "lora"
    if not linear or not all(linear):
        with pytest.raises(AdapterError, match="cannot be merged"):
            merge(model, "a")
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(logits(model, ids), active)
        return
    merge(model, "a")
    assert gap(logits(model, ids), active) <= 1e-5
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, weights[key])}
    assert changed == {f"{placed.site.path}.weight" for placed in adapter.placed()}
    unmerge(model, "a")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(model, ids), active)
    merge(model, "a")
    detach(model, "a")  # takes it out of the weights first
    assert torch.equal(logits(model, ids), bare)


# -- rows that share a batch ------------------------------------------------------------------------


@every
def test_padded_batch_is_its_rows(family: str, name: str) -> None:
    model = tiny_model(family)
    put_on(model, name)
    rows = [token_ids(1, n, seed=n)[0] for n in (7, 4, 2)]
    alone = [logits(model, row[None])[0] for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        given = [{"position_ids": positions(mask)}] if takes_positions(model) else []
        for more in ({}, *given):  # the five families count positions relatively, so they may be left out
            together = logits(model, ids, attention_mask=mask, **more)
            for i, row in enumerate(alone):
                assert gap(together[i][mask[i].bool()], row) <= 1e-5, (side, i, list(more))


def by_hand(model: nn.Module, ids: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Greedy decoding without a cache: ids and the logits (B, V) of every step."""
    last = []
    for _ in range(steps):
        more = {"position_ids": positions(mask)} if takes_positions(model) else {}
        last.append(logits(model, ids, attention_mask=mask, use_cache=False, **more)[:, -1])
        best = last[-1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, best], 1), torch.cat([mask, torch.ones_like(best)], 1)
    return ids, last


@every
def test_cached_decoding_is_the_full_forward(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(2, 8)
    put_on(model, name)
    full = logits(model, ids, use_cache=False)
    with torch.no_grad():
        out = model(ids[:, :4], use_cache=True)
        steps = [out.logits]
        for chunk in (ids[:, 4:5], ids[:, 5:7], ids[:, 7:]):
            out = model(chunk, past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
    assert gap(torch.cat(steps, 1), full) <= 1e-5


@every
def test_generate_is_uncached_argmax(family: str, name: str) -> None:
    model = tiny_model(family)
    put_on(model, name)
    ids, mask = padded([token_ids(1, n, seed=n)[0] for n in (6, 3)], "left")
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    found = model.generate(ids, attention_mask=mask, output_logits=True, **options)
    sequences, steps = by_hand(model, ids, mask, 4)
    assert torch.equal(found.sequences, sequences)
    assert all(gap(a, b) <= 1e-5 for a, b in zip(found.logits, steps, strict=True))
    beams = [
        model.generate(ids, attention_mask=mask, num_beams=2, use_cache=cached, output_scores=True, **options)
        for cached in (True, False)
    ]
    assert torch.equal(beams[0].sequences, beams[1].sequences)
    assert gap(beams[0].sequences_scores, beams[1].sequences_scores) <= 1e-5


MIXED = {
    "interleaved": ["a", "b", "c", None, "b", "a"],
    "contiguous": ["a", "a", "c", "c", "b", None],
    "alternating": ["a", None, "a", None, "a", None],
}


@every
def test_routed_batch_is_each_adapter_alone(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(6, 5)
    other = other_than(name)
    longer = {"tokens": 5} if "tokens" in methods()[other].model_fields else {}
    alone = {None: logits(model, ids)}
    slopes: dict[str, list[dict[str, Tensor]]] = {}
    adapters = {"a": (name, {}), "b": (other, longer), "c": (name, {})}  # two of one type, one of another
    for key, (kind, fields) in adapters.items():
        adapter = put_on(model, kind, key, **fields)
        alone[key] = logits(model, ids)
        slopes[key] = []
        for row in ids:
            loss_of(model, row[None]).backward()
            slopes[key].append(gradients(adapter))
        detach(model)
    assert min(gap(alone["a"][i], alone["b"][i]) for i in range(6)) > 1e-2
    on = {key: put_on(model, kind, key, **fields) for key, (kind, fields) in adapters.items()}
    for rows in MIXED.values():
        with route(model, rows):
            mixed = model(ids)
            for i, key in enumerate(rows):
                assert gap(mixed.logits[i].detach(), alone[key][i]) <= 1e-5, (rows, i)
            loss = sum(model.loss_function(mixed.logits[i : i + 1], ids[i : i + 1], vocab_size=97) for i in range(6))
        loss.backward()
        for key, adapter in on.items():
            mine = [slopes[key][i] for i in range(6) if rows[i] == key]
            found = gradients(adapter)
            for parameter in slopes[key][0]:
                if mine:
                    total = sum(slope[parameter] for slope in mine)
                    assert gap(found[parameter], total) <= 1e-5 * max(1.0, float(total.abs().max())), (rows, parameter)
                else:
                    assert parameter not in found or not found[parameter].any()


@every
def test_routed_generation_is_each_adapter_alone(family: str, name: str) -> None:
    model = tiny_model(family)
    prompts = [token_ids(1, n, seed=n)[0] for n in (5, 3, 4)]
    ids, mask = padded(prompts, "left")
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    rows = ["a", None, "b"]
    put_on(model, name, "a"), put_on(model, other_than(name), "b")
    for beams in (1, 2):
        with route(model, rows, expand=beams):
            together = model.generate(ids, attention_mask=mask, num_beams=beams, **options)
        for i, key in enumerate(rows):
            with route(model, key):
                alone = model.generate(prompts[i][None], num_beams=beams, **options)
            assert torch.equal(together[i, -3:], alone[0, -3:]), (beams, i)


@every
def test_packed_documents_are_the_documents_alone(family: str, name: str) -> None:
    if family == "bloom":
        pytest.skip("bloom counts positions from a 2-dimensional mask, so it cannot be packed")
    model = tiny_model(family)
    put_on(model, name)
    documents = [token_ids(1, n, seed=n) for n in (5, 4)]
    alone = torch.cat([logits(model, document) for document in documents], 1)
    packed = torch.cat(documents, 1)
    restarting = torch.cat([torch.arange(5), torch.arange(4)])[None]
    visible = torch.block_diag(torch.ones(5, 5), torch.ones(4, 4)).bool().tril()[None, None]
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    inputs: list[dict[str, Any]] = [{"attention_mask": additive}, {"use_cache": False}]
    if model.config._attn_implementation == "sdpa":
        inputs.append({"attention_mask": visible})
    for more in inputs:  # a mask of our own, and the one that transformers makes from the positions
        assert gap(logits(model, packed, position_ids=restarting, **more), alone) <= 1e-5, list(more)
