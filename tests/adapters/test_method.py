"""Recipes: every mistake is named, all of them at once."""

from __future__ import annotations

from typing import Any

import pytest

from llm_adapters.adapters.method import method, methods, parse_method
from llm_adapters.errors import MethodError


def test_unknown_method_and_its_nearest() -> None:
    with pytest.raises(MethodError) as caught:
        method("prefx")
    assert caught.value.nearest == "prefix"
    assert caught.value.allowed == list(methods())
    with pytest.raises(MethodError, match="needs the field 'method'"):
        parse_method({"rank": 8})
    assert parse_method(method("lora", rank=4).recipe()) == method("lora", rank=4)


def test_all_mistakes_of_a_method_at_once() -> None:
    with pytest.raises(MethodError) as caught:
        method("lora", rnak=8, rank=-2, alpha="big", dropout=1.0, sites=["atn.q"], layers="frist:2")
    words = str(caught.value)
    assert "method 'lora': 6 mistakes" in words
    assert (
        "unknown field 'rnak' (given 8); allowed: sites, layers, rank, alpha, dropout, rslora; nearest: rank" in words
    )
    assert "field 'rank' is -2" in words
    assert "field 'alpha' is 'big'" in words
    assert "field 'dropout' is 1.0" in words
    assert "unknown site 'atn.q'" in words
    assert "nearest: attn.q" in words
    assert "layers 'frist:2' cannot be read" in words


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("lora", {"rank": 0}, "field 'rank' is 0"),
        ("lora", {"rank": 2.5}, "field 'rank' is 2.5"),
        ("lora", {"alpha": float("inf")}, "field 'alpha' is inf"),
        ("lora", {"sites": []}, "sites is empty"),
        ("lora", {"sites": 5}, "field 'sites' is 5"),
        ("lora", {"layers": []}, "layers is empty"),
        ("lora", {"layers": True}, "layers True cannot be read"),
        ("lora", {"layers": "5-3"}, "layers '5-3' cannot be read"),
        ("lora", {"layers": "last:0"}, "layers 'last:0' cannot be read"),
        ("series", {"nonlinearity": "swish"}, "field 'nonlinearity' is 'swish'"),
        ("series", {"bottleneck": -1}, "field 'bottleneck' is -1"),
        ("prefix", {"tokens": 0}, "field 'tokens' is 0"),
        ("prefix", {"init": "text"}, "init 'text' and init_text go together"),
        ("prefix", {"init_text": "x"}, "init 'text' and init_text go together"),
        ("prompt", {"init": "text"}, "init 'text' and init_text go together"),
        (
            "prefix",
            {"init": "text", "init_text": "x", "reparametrization": 4},
            "a reparametrized prefix starts at random, not from text",
        ),
        ("p_tuning", {"encoder": "gru"}, "field 'encoder' is 'gru'"),
    ],
)
def test_one_mistake(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError) as caught:
        method(name, **fields)
    assert str(caught.value).startswith(f"method '{name}': ")
    assert words in str(caught.value)
