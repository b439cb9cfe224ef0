"""LoRA's dropout: the formula with its mask written out, drawn as often as asked for, and held nowhere."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_adapters.adapters.forms import LowRank
from llm_adapters.adapters.forms.dropout import dropped
from llm_adapters.model.memory import is_out_of_memory
from llm_adapters.model.recomputed import recomputing
from llm_adapters.train.counting import Ledger


def _lora(rate: float) -> LowRank:
    torch.manual_seed(1)
    form = LowRank(12, 10, 3, scale=2.0, dropout=rate)
    torch.nn.init.normal_(form.B)
    return form


def _gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return [each.clone() for each in torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("way", ["forward", "add_to", "fresh"])
def test_it_is_the_formula_with_the_mask_written_out(way: str, again: bool) -> None:
    form, x, out = _lora(0.3), torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 10)
    outer = torch.randn(2, 5, 10)
    torch.manual_seed(7)
    mask = dropped(torch.ones(2, 5, 12), 0.3) / 0.7
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


def test_no_memory_for_a_mask_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with too large a micro-batch then goes on with a smaller one."""

    class Full:
        def __init__(self, _seed: int) -> None: ...
        def random_raw(self, size: int) -> None:
            raise MemoryError(f"Unable to allocate an array with shape ({size},)")

    monkeypatch.setattr(np.random, "SFC64", Full)
    with pytest.raises(torch.OutOfMemoryError) as failure:
        dropped(torch.ones(3, 4), 0.5)
    assert is_out_of_memory(failure.value)


def test_the_seed_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    torch.manual_seed(3)
    expected = dropped(torch.ones(50, 20), 0.5)
    torch.manual_seed(3)
    ones = torch.ones(50, 20)
    with torch.device("meta"):
        assert torch.equal(dropped(ones, 0.5), expected)


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


def test_not_in_evaluation() -> None:
    form, x = _lora(0.5).eval(), torch.randn(3, 4, 12)
    assert torch.equal(form(x), form(x))
    torch.testing.assert_close(form(x), 2.0 * x @ form.A.t() @ form.B.t())
