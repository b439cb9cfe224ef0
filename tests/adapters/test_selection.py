"""The sites and layers that a recipe chooses on a model, and those that the model lacks."""

from __future__ import annotations

from typing import Any

import pytest

from llm_adapters.adapters.attach import attach
from llm_adapters.errors import MethodError, SiteError
from tiny import small, state_of, tiny_model


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        (
            "bloom",
            {"sites": ["attn.q"]},
            r"(?s)no site 'attn.q': .* fused into one site, 'attn.qkv'.*sites: \[attn.qkv\]",
        ),
        ("phi3", {"sites": ["ffn.up"]}, r"(?s)fused into one site, 'ffn.gate_up'.*sites: \[ffn.gate_up\]"),
        ("bloom", {"sites": ["ffn.gate"]}, r"(?s)its feed-forward has no gate.*sites: \[ffn.up\]"),
        ("mixtral", {"sites": ["ffn.up"]}, "its feed-forward is a mixture of experts without single linears"),
        ("llama", {"sites": ["attn.qkv"]}, r"(?s)\(llama\) has no site 'attn.qkv'.*allowed: attn.q, attn.k, .*embed"),
        ("llama", {"sites": ["embed"]}, "the input of 'embed' is token ids"),
        ("llama", {"layers": [0, 2]}, r"(?s)the model has 2 layers, so there is no layer 2.*allowed: 0-1, last:2"),
        ("llama", {"layers": "1-3"}, "there is no layer 2, 3"),
        ("llama", {"layers": "last:3"}, "there is no layer -3"),
        ("llama", {"layers": -3}, "there is no layer -3"),
    ],
)
def test_sites_that_the_model_lacks(family: str, fields: dict[str, Any], words: str) -> None:
    model = tiny_model(family)
    before = state_of(model)
    with pytest.raises((SiteError, MethodError), match=words):
        attach(model, small("lora", **fields))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [("all", [0, 1, 2, 3]), (1, [1]), (-1, [3]), ([3, 0, 3], [0, 3]), ("1-2", [1, 2]), ("2", [2]), ("last:2", [2, 3])],
)
def test_layers_that_are_chosen(layers: Any, chosen: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=4)
    adapter = attach(model, small("lora", sites=["attn.q|attn.qkv", "ffn.gate_up|ffn.down"], layers=layers))
    assert [(p.site.layer, p.site.name) for p in adapter.placed()] == [
        (layer, name) for layer in chosen for name in ("attn.q", "ffn.down")
    ]


def test_sets_of_sites() -> None:
    adapter = attach(tiny_model("bloom"), small("lora", sites=["ffn.*", "attn.*"], layers=0))
    assert [p.site.name for p in adapter.placed()] == ["ffn.up", "ffn.down", "attn.qkv", "attn.o"]
    adapter = attach(tiny_model("llama"), small("series", sites=["embed", "block"], layers=1))
    assert [(p.site.name, p.site.layer) for p in adapter.placed()] == [("embed", None), ("block", 1)]
