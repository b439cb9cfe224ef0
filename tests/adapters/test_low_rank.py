"""A LoRA that adds itself gives what the formula gives, forward and backward, in place or not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import llm_adapters as la
from llm_adapters.adapters.forms import LowRank
from llm_adapters.adapters.forms.dropout import dropped
from tiny import put_on, small, tiny_model

OUTS = ["whole", "view", "strided", "flat", "no rows"]
FROZEN = ["nothing", "out", "x", "A", "B"]


def _given(kind: str, frozen: str) -> tuple[Tensor, Tensor, LowRank]:
    torch.manual_seed(0)
    form = LowRank(6, 10, 3, scale=1.7)
    nn.init.normal_(form.B)
    shape = {"flat": (7,), "no rows": (0,)}.get(kind, (2, 4))
    x = torch.randn(*shape, 6, requires_grad=frozen != "x")
    out = torch.randn(*shape, 10) if kind != "strided" else torch.randn(*shape, 20)[..., ::2]
    form.A.requires_grad_(frozen != "A")
    form.B.requires_grad_(frozen != "B")
    return out.requires_grad_(frozen != "out"), x, form


def _as_a_map_gives_it(out: Tensor, kind: str) -> Tensor:
    """No leaf: a tensor of its own, a view of one (as of GPT-2's maps), or one with holes."""
    if kind == "view":
        return (out.reshape(-1, out.shape[-1]) * 1).view(out.shape)
    if kind == "strided":
        return torch.stack([out, out], dim=-1)[..., 0]
    return out * 1


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("frozen", FROZEN)
def test_gradients_are_those_of_the_formula(kind: str, frozen: str, fresh: bool) -> None:
    out, x, form = _given(kind, frozen)
    wanted = [each for each in (out, x, form.A, form.B) if each.requires_grad]
    expected = out + form.scale * (x @ form.A.t()) @ form.B.t()
    outer = torch.randn(expected.shape)
    gradients = torch.autograd.grad(expected, wanted, outer)
    before = out.detach().clone()
    found = form.add_to(_as_a_map_gives_it(out, kind), x, fresh=fresh)
    torch.testing.assert_close(found, expected)
    assert torch.equal(out, before)
    for here, there in zip(torch.autograd.grad(found, wanted, outer), gradients, strict=True):
        torch.testing.assert_close(here, there)
    with torch.no_grad():
        torch.testing.assert_close(form.add_to(out.detach().clone(), x, fresh=fresh), expected)


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("outer_has_history", [False, True])
def test_second_derivatives_are_those_of_the_formula(kind: str, frozen: str, outer_has_history: bool) -> None:
    out, x, form = _given(kind, frozen)
    wanted = [each for each in (out, x, form.A, form.B) if each.requires_grad]
    outer = torch.randn(out.shape)

    def twice(result: Tensor) -> list[Tensor]:
        loss = (result.square() if outer_has_history else result).mul(outer).sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        length = sum((each.square().sum() for each in first), torch.zeros(()))
        found = torch.autograd.grad(length, wanted, allow_unused=True)
        return [torch.zeros_like(p) if each is None else each for p, each in zip(wanted, found, strict=True)]

    expected = twice(out + form.scale * (x @ form.A.t()) @ form.B.t())
    result = form.add_to(_as_a_map_gives_it(out, kind), x, fresh=True)
    if frozen == "A":  # x is not kept then; its own gradient needs none, nor does the first one of B
        with pytest.raises(RuntimeError, match="needs its A to be trainable"):
            twice(result)
        wanted = [out, x]
        expected = twice(out + form.scale * (x @ form.A.t()) @ form.B.t())
        result = form.add_to(_as_a_map_gives_it(out, kind), x, fresh=True)
    for here, there in zip(twice(result), expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_second_derivatives_under_dropout_are_those_with_the_mask_written_out(rate: float) -> None:
    _, x, form = _given("whole", "nothing")
    form.dropout = rate
    torch.manual_seed(1)
    mask = dropped(torch.ones(x.shape), rate)
    assert not mask.all()
    wanted = [x, form.A, form.B]
    found = []
    for own in (True, False):
        torch.manual_seed(1)
        out = torch.zeros(*x.shape[:-1], 10)
        plain = form.scale / (1 - rate) * (x * mask @ form.A.t()) @ form.B.t()
        result = form.add_to(out, x, fresh=False) if own else plain
        first = torch.autograd.grad(result.sum(), wanted, create_graph=True)
        length = sum((each.square().sum() for each in first), torch.zeros(()))
        found.append([*first, *torch.autograd.grad(length, wanted)])
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_products_that_a_policy_saves_for_the_backward_pass_are_not_written_over() -> None:
    def products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        saved = operation in {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    def gradients(*, saving: bool) -> list[Tensor | None]:
        model: Any = tiny_model("llama")
        for name in ("a", "b"):
            put_on(model, small("lora"), name)
        run = partial(model, torch.arange(3, 15)[None])
        contexts = partial(create_selective_checkpoint_contexts, products)
        output = checkpoint(run, use_reentrant=False, context_fn=contexts) if saving else run()
        output.logits.square().mean().backward()
        return [p.grad for adapter in la.attached(model).values() for p in adapter.parameters()]

    for here, there in zip(gradients(saving=True), gradients(saving=False), strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("kind", OUTS)
def test_a_second_form_may_overwrite_what_the_first_gave(kind: str) -> None:
    out, x, form = _given(kind, "nothing")
    twice = form.add_to(form.add_to(out, x, fresh=False), x, fresh=True)
    torch.testing.assert_close(twice, out + 2 * form(x))
    twice.sum().backward()
    assert form.B.grad is not None


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_two_on_one_model_in_half_precision(family: str) -> None:
    model: Any = tiny_model(family).bfloat16()
    for name in ("a", "b"):
        put_on(model, small("lora"), name)
    ids = torch.arange(3, 15)[None]
    logits = model(ids).logits.float()
    logits.square().mean().backward()
    parameters = [p for adapter in la.attached(model).values() for p in adapter.parameters()]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
    assert any(bool(p.grad.any()) for p in parameters if p.grad is not None)
