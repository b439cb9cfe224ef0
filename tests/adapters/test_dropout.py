"""LoRA's dropout: the formula with its mask written out, drawn as often as asked for, and held nowhere."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_adapters.adapters.forms import LowRank, dropout
from llm_adapters.adapters.forms.dropout import dropped
from llm_adapters.model.memory import is_out_of_memory
from llm_adapters.model.recomputed import recomputing
from llm_adapters.train.counting import Ledger

CPU = torch.device("cpu")


def _lora(rate: float) -> LowRank:
    torch.manual_seed(1)
    form = LowRank(12, 10, 3, scale=2.0, dropout=rate)
    torch.nn.init.normal_(form.B)
    return form


def _gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return [each.clone() for each in torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("way", ["forward", "add_to", "fresh", "strided"])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_it_is_the_formula_with_the_mask_written_out(rate: float, way: str, again: bool) -> None:
    form, x, out = _lora(rate), torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 10)
    if way == "strided":
        x = torch.randn(2, 5, 24)[..., ::2].requires_grad_()
    outer, before = torch.randn(2, 5, 10), x.detach().clone()
    torch.manual_seed(7)
    mask = dropped(torch.ones(2, 5, 12), rate) / (1 - rate)
    expected = out + 2.0 * (x * mask) @ form.A.t() @ form.B.t()
    torch.manual_seed(7)
    with recomputing() if again else nullcontext():
        found = out + form.update(x) if way == "forward" else form.add_to(out.clone(), x, fresh=way == "fresh")
        torch.testing.assert_close(found, expected)
        here = _gradients((found * outer).sum(), x, form.A, form.B)
    there = _gradients((expected * outer).sum(), x, form.A, form.B)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other)
    assert (here[0] == 0).sum() == (mask == 0).sum() > 0
    assert torch.equal(x, before)
    assert x._version == 0


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_zeros_is_the_rate(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    masks = [dropped(torch.ones(300, 200, dtype=dtype), rate) for _ in range(2)]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 60_000) ** 0.5)
    both = float(((masks[0] == 0) & (masks[1] == 0)).float().mean())  # each call draws its own
    assert both == pytest.approx(rate**2, abs=0.01)
    beside = float(((masks[0][:, 1:] == 0) & (masks[0][:, :-1] == 0)).float().mean())
    assert beside == pytest.approx(rate**2, abs=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_no_memory_for_a_mask_is_no_memory(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with too large a micro-batch then goes on with a smaller one."""

    class Full:
        def __init__(self, _seed: int) -> None: ...
        def random_raw(self, size: int) -> None:
            raise MemoryError(f"Unable to allocate an array with shape ({size},)")

    monkeypatch.setattr(np.random, "SFC64", Full)
    with pytest.raises(torch.OutOfMemoryError) as failure:
        dropped(torch.ones(3, 4), rate)
    assert is_out_of_memory(failure.value)


def test_the_seed_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    for rate in (0.1, 0.5):
        torch.manual_seed(3)
        expected = dropped(torch.ones(50, 20), rate)
        torch.manual_seed(3)
        ones = torch.ones(50, 20)
        with torch.device("meta"):
            assert torch.equal(dropped(ones, rate), expected)


def test_the_same_seed_drops_the_same() -> None:
    first, second = (torch.manual_seed(3) and dropped(torch.ones(50, 20), 0.5) for _ in range(2))
    assert torch.equal(first, second)


def test_neither_a_mask_nor_what_it_leaves_is_held() -> None:
    """Three maps read one state, as q, k and v do: without dropout they hold it once, and with dropout too."""

    def held(rate: float) -> int:
        forms, states = [_lora(rate) for _ in range(3)], torch.randn(4, 50, 12, requires_grad=True)
        with Ledger([states, *(p for form in forms for p in form.parameters())]) as ledger, recomputing():
            x = states * 1.0
            total = torch.stack([form.add_to(x[..., :10] * 1.0, x, fresh=True) for form in forms]).sum()
            saved = ledger.now
            total.backward()
        return saved

    assert held(0.5) <= held(0.0) + 64
    assert held(0.05) <= held(0.0) + 64


def test_few_places_are_drawn_until_all_are_passed() -> None:
    """The first draw of places may end before the last place does."""
    draw = dropout.Draw(1, 0.05)
    expected = draw.places(10_000, CPU)
    once = dropout.Draw._next
    with pytest.MonkeyPatch.context() as patch:  # a word at a time: other draws, all the way too
        patch.setattr(dropout.Draw, "_next", lambda self, source, last, _: once(self, source, last, last + 1)[:3])
        found = draw.places(10_000, CPU)
    for places in (expected, found):
        assert bool((places.diff() > 0).all())
        assert 400 < len(places) < 600
        assert 9_800 < int(places[-1]) < 10_000
    assert len(draw.places(0, CPU)) == 0


def test_not_in_evaluation() -> None:
    form, x = _lora(0.5).eval(), torch.randn(3, 4, 12)
    assert torch.equal(form(x), form(x))
    torch.testing.assert_close(form(x), 2.0 * x @ form.A.t() @ form.B.t())
