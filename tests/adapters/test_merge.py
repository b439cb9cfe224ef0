"""Merging into the weights and out of them again, and what cannot be merged."""

from __future__ import annotations

import pytest
import torch

from llm_adapters.adapters.attach import detach, disable, enable, rename, route
from llm_adapters.adapters.merge import merge, unmerge
from llm_adapters.errors import AdapterError
from tiny import IDS, gap, logits, put_on, small, tiny_model, token_ids, two


@pytest.mark.parametrize("family", ["gpt2", "bloom", "phi3"])
def test_merge_into_fused_and_transposed_weights(family: str) -> None:
    model = tiny_model(family)
    adapter = put_on(model, small("lora"), "a")
    active = logits(model, IDS)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    merge(model, "a")
    disable_hooks = [placed.site.path for placed in adapter.placed()]
    assert all(not torch.equal(model.get_submodule(path).weight, weights[f"{path}.weight"]) for path in disable_hooks)
    assert gap(logits(model, IDS), active) < 1e-5
    unmerge(model, "a")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_merge_takes_any_linear_map_beside_linears() -> None:
    model = tiny_model("llama")
    put_on(model, small("parallel", nonlinearity="identity", learned_scale=True), "a")
    active = logits(model, IDS)
    merge(model, "a")
    assert gap(logits(model, IDS), active) < 1e-5
    model = tiny_model("llama")
    for recipe in (small("parallel", nonlinearity="identity", sites=["ffn"]), small("lora", sites=["ffn", "attn.q"])):
        put_on(model, recipe, recipe.name())
        with pytest.raises(AdapterError, match="not a linear map beside linears"):
            merge(model, recipe.name())


def test_merge_order_and_refusals() -> None:
    model, *_ = two(second="lora")
    both = logits(model, IDS)
    bare = tiny_model("llama").state_dict()
    with pytest.raises(AdapterError, match="no adapter 'c' is attached"):
        merge(model, "c")
    disable(model, "a")
    with pytest.raises(AdapterError, match="'a' is disabled"):
        merge(model, "a")
    enable(model, "a")
    merge(model, "a")
    assert gap(logits(model, IDS), both) < 1e-5
    merge(model, "b")
    assert gap(logits(model, IDS), both) < 1e-5
    for refused, words in (
        (lambda: merge(model, "a"), "'a' is merged already"),
        (lambda: unmerge(model, "a"), "'b' was merged after 'a'"),
        (lambda: disable(model, "a"), "'a' is merged into the base"),
    ):
        with pytest.raises(AdapterError, match=words):
            refused()
    with pytest.raises(AdapterError, match="so no row can go round it"), route(model, [["a", "b"], None, "a"]):
        pass
    unmerge(model, "b")
    unmerge(model, "a")
    with pytest.raises(AdapterError, match="'a' is not merged"):
        unmerge(model, "a")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in bare.items())


def test_merged_adapters_leave_in_any_order_and_can_stay_in_the_weights() -> None:
    model, ids = tiny_model("llama"), token_ids(2, 5)
    before = logits(model, ids)
    for name in ("a", "b", "c"):
        put_on(model, small("lora"), name)
    merged = logits(model, ids)
    merge(model, "b"), merge(model, "a"), merge(model, "c")
    detach(model)
    assert torch.equal(logits(model, ids), before)
    put_on(model, small("lora"), "a"), put_on(model, small("lora"), "b"), put_on(model, small("lora"), "c")
    for name in ("a", "b", "c"):
        merge(model, name)
    detach(model, keep_merged=True)
    assert not any(key.startswith("llm_adapters") for key in model.state_dict())
    assert gap(logits(model, ids), merged) < 1e-5


def test_rename_of_a_merged_adapter() -> None:
    model, *_ = two()
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.clone()
    merge(model, "a")
    rename(model, "a", "other")
    with pytest.raises(AdapterError, match="'other' is merged"):
        disable(model, "other")
    unmerge(model, "other")
    assert torch.equal(weight, before)
