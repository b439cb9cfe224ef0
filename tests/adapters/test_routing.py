"""Routes: they nest, end, and are refused where they do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_adapters.adapters.attach import detach, engine_of, rename, route
from llm_adapters.errors import RouteError
from tiny import IDS, gap, logits, two


def test_route_errors() -> None:
    model, *_ = two()
    cases: list[tuple[Any, str]] = [
        ("maths", r"adapter 'maths', which is not attached\n  allowed: a, b, None"),
        (["a", "bb"], r"(?s)adapter 'bb', which is not attached.*mend:    route 'b'"),
        ([], "the route is empty"),
        ([["a", "a"], None], r"names an adapter twice: \['a', 'a'\]"),
        ([5], "a row of the route is 5"),
    ]
    for rows, words in cases:
        with pytest.raises(RouteError, match=words), route(model, rows):
            pass
    assert engine_of(model).route is None


def test_route_that_does_not_fit_the_batch() -> None:
    model, *_ = two()
    before = logits(model, IDS)
    for rows in (["a", "b"], ["a"] * 6):
        with route(model, rows), pytest.raises(RouteError, match=f"the route has {len(rows)} rows, the batch 3"):
            logits(model, IDS)
    assert torch.equal(logits(model, IDS), before)
    with route(model, ["a", "b"], expand=2):  # two prompts, each expanded to two rows
        expanded = logits(model, IDS[[0, 1, 1, 2]])
    with route(model, ["a", "a", "b", "b"]):
        assert torch.equal(logits(model, IDS[[0, 1, 1, 2]]), expanded)


def test_routes_nest_and_end() -> None:
    model, *_ = two()
    with route(model, "a"):
        a = logits(model, IDS)
        with route(model, "b"):
            b = logits(model, IDS)
        assert torch.equal(logits(model, IDS), a)
        with pytest.raises(RouteError, match="adapter 'a' is in the route in force"):
            detach(model, "a")
        with pytest.raises(RouteError, match="adapter 'a' is in the route in force"):
            rename(model, "a", "c")
    assert gap(a, b) > 1e-2
    assert gap(logits(model, IDS), a) > 1e-2
    with pytest.raises(ZeroDivisionError), route(model, "a"):
        _ = 1 / 0
    assert engine_of(model).route is None


def test_a_failed_forward_leaves_nothing_behind() -> None:
    model, *_ = two(first="prefix")
    before = logits(model, IDS)
    with pytest.raises(IndexError):
        model(torch.tensor([[500]]))
    assert engine_of(model).current is None
    assert torch.equal(logits(model, IDS), before)
