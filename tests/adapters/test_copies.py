"""Deep copies and pickles of attached models and of adapters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from llm_adapters.adapters.attach import attach, attached, detach, route
from llm_adapters.adapters.method import method
from tiny import IDS, gap, logits, put_on, randomise, small, state_of, tiny_model, token_ids, two


@pytest.mark.parametrize("first", ["lora", "prefix", "prompt"])
def test_a_deep_copy_is_independent(first: str) -> None:
    model, a, _ = two(first=first)
    both = logits(model, IDS)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, IDS), both)
    assert attached(twin)["a"] is not a
    randomise(attached(twin)["a"], seed=9)
    changed = logits(twin, IDS)
    assert gap(changed, both) > 1e-2
    with route(twin, "b"):
        assert torch.equal(logits(model, IDS), both)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in attached(twin)["a"].parameters())
    detach(model)
    assert torch.equal(logits(twin, IDS), changed)
    detach(twin)
    assert torch.equal(logits(twin, IDS), logits(tiny_model("llama"), IDS))
    assert state_of(twin) == state_of(tiny_model("llama"))


def test_a_copied_adapter_shares_its_base() -> None:
    model = tiny_model("llama")
    adapter = put_on(model, small("lora"), "a")
    twin = copy.deepcopy(adapter)
    assert twin.base.model is model
    assert next(twin.placed()).site is next(adapter.placed()).site
    assert next(twin.parameters()) is not next(adapter.parameters())


def test_an_attached_model_can_be_pickled(tmp_path: Path) -> None:
    model = tiny_model("llama")
    randomise(attach(model, method("prefix"), "a"))
    ids = token_ids(2, 5)
    expected = logits(model, ids)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(again, ids), expected)
    detach(again)
    assert not torch.equal(logits(again, ids), expected)
    assert torch.equal(logits(model, ids), expected)
