"""Compiled models."""

from __future__ import annotations

import pytest
import torch

from llm_adapters.adapters.attach import detach, route
from tiny import IDS, gap, logits, put_on, small, tiny_model


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_compiled_models_follow_routes(name: str) -> None:
    torch._dynamo.reset()
    model = tiny_model("llama", num_hidden_layers=1)
    bare = logits(model, IDS)
    adapter = put_on(model, [small(name), small("lora"), small("series")], "a")
    expected = logits(model, IDS)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(IDS, labels=IDS).loss.backward()
    found = {key: p.grad.clone() for key, p in adapter.named_parameters()}
    adapter.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    assert all(gap(p.grad, found[key]) < 1e-5 for key, p in adapter.named_parameters())
    with route(compiled, ["a", None, "a"]):
        mixed = logits(compiled, IDS)
    assert gap(mixed[[0, 2]], expected[[0, 2]]) < 1e-5
    assert gap(mixed[1], bare[1]) < 1e-5
    detach(compiled)
    assert gap(logits(compiled, IDS), bare) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_compiled_by_inductor(name: str) -> None:
    torch._dynamo.reset()
    model = tiny_model("llama")
    put_on(model, small(name), "a")
    expected = logits(model, IDS)
    assert gap(logits(torch.compile(model), IDS), expected) < 1e-5
