"""Attaching, enabling, renaming and detaching: what changes, what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm_adapters.adapters.attach import attach, attached, detach, disable, enable, rename, route
from llm_adapters.errors import AdapterError, RouteError
from tiny import IDS, gap, logits, put_on, small, state_of, tiny_model, two


def test_enable_and_disable_by_name_and_all() -> None:
    model, *_ = two()
    both = logits(model, IDS)
    only = {}
    for name, other in (("a", "b"), ("b", "a")):
        disable(model, other)
        only[name] = logits(model, IDS)
        with route(model, name):
            assert torch.equal(logits(model, IDS), only[name])
        enable(model, other)
    assert gap(only["a"], only["b"]) > 1e-2
    disable(model)
    assert torch.equal(logits(model, IDS), logits(tiny_model("llama"), IDS))
    enable(model)
    assert gap(logits(model, IDS), both) < 1e-6
    with pytest.raises(AdapterError, match="no adapter 'c' is attached"):
        disable(model, "c")


def test_rename_keeps_everything_but_the_name(tmp_path: Path) -> None:
    model, a, _ = two()
    before, keys = logits(model, IDS), list(attached(model))
    disable(model, "b")
    rename(model, "a", "first")
    rename(model, "b", "second")
    assert keys == ["a", "b"]
    assert list(attached(model)) == ["first", "second"]
    assert attached(model)["first"] is a
    with route(model, [["first", "second"]]):
        assert torch.equal(logits(model, IDS), before)
    assert {key.split(".")[1] for key in model.state_dict() if key.startswith("llm_adapters.")} == {"first", "second"}
    assert json.loads((a.save(tmp_path / "x") / "adapter.json").read_text())["name"] == "first"
    with route(model, "first"):
        expected = logits(model, IDS)
    assert torch.equal(logits(model, IDS), expected)  # the second still rests
    rename(model, "first", "first")
    with pytest.raises(RouteError, match="'a', which is not attached"), route(model, "a"):
        pass


def test_detach_one_of_two_keeps_the_other() -> None:
    model, *_ = two()
    disable(model, "a")
    only_b = logits(model, IDS)
    detach(model, "a")
    assert torch.equal(logits(model, IDS), only_b)
    assert not any(p.requires_grad for key, p in model.named_parameters() if not key.startswith("llm_adapters."))
    detach(model, "b")
    assert state_of(model) == state_of(tiny_model("llama"))
    assert attached(model) == {}


@pytest.mark.parametrize("name", ["", "a.b", "-a", "ä", "train", "training", "engine", "keys", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        attach(model, small("lora"), name)
    assert state_of(model) == state_of(tiny_model("llama"))
    put_on(model, small("lora"), "a")
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        rename(model, "a", name)


def test_name_clashes() -> None:
    model, *_ = two()
    before = logits(model, IDS)
    with pytest.raises(AdapterError, match=r"an adapter 'a' is attached already\n.*detach\(model, 'a'\)"):
        attach(model, small("prefix"), "a")
    with pytest.raises(AdapterError, match="an adapter 'b' is attached already"):
        rename(model, "a", "b")
    assert torch.equal(logits(model, IDS), before)


def test_nothing_attached() -> None:
    model = tiny_model("llama")
    for operation in (detach, enable, disable):
        with pytest.raises(AdapterError, match="no adapter is attached to this model"):
            operation(model)
    with pytest.raises(AdapterError, match="attach takes a method"):
        attach(model, [])
    assert state_of(model) == state_of(tiny_model("llama"))


def test_a_method_name_in_place_of_a_method_is_explained() -> None:
    with pytest.raises(AdapterError, match=r'la\.method\("lora"\)'):
        attach(tiny_model("llama"), "lora")
