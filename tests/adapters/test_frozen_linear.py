"""A LoRA passes back what goes through its frozen linear map: the gradients are those of the map and the LoRA apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llm_adapters as la
from llm_adapters.adapters.insertion import SiteHook
from llm_adapters.model import prepacked
from llm_adapters.model.frozen_linear import FrozenLinear
from llm_adapters.model.prepacked import Prepacked
from tiny import put_on, small, tiny_model

IDS = torch.arange(3, 15).view(2, 6)


def _model(family: str = "llama", recipe: Any = None) -> Any:
    """With a bias where the family has one, and a LoRA on every linear."""
    model: Any = tiny_model(family).train()
    put_on(model, recipe or small("lora"), "a")
    return model


def _used(monkeypatch: pytest.MonkeyPatch) -> list[FrozenLinear]:
    """The maps whose gradient a LoRA computes from now on."""
    found: list[FrozenLinear] = []
    gradient = FrozenLinear.gradient

    def watched(frozen: FrozenLinear, outer: Tensor) -> Tensor:
        found.append(frozen)
        return gradient(frozen, outer)

    monkeypatch.setattr(FrozenLinear, "gradient", watched)
    return found


def _gradients(model: Any, *, known: bool) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        if not known:
            patch.setattr(SiteHook, "_frozen", lambda *_: None)
        torch.manual_seed(1)  # GPT-2 has dropout of its own
        embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
        loss = model(inputs_embeds=embeddings).logits.square().mean()
        wanted = [embeddings, *(p for p in model.parameters() if p.requires_grad)]
        return list(torch.autograd.grad(loss, wanted))


def _assert_same(model: Any) -> None:
    for here, there in zip(_gradients(model, known=True), _gradients(model, known=False), strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gptj", "bloom", "gpt2", "mixtral"])
def test_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(family)
    used, placed = _used(monkeypatch), list(la.attached(model)["a"].placed())
    _assert_same(model)
    plain = [each for each in placed if type(each.site.output) is nn.Linear]
    assert len(used) == len(plain)
    assert bool(plain) == (family != "gpt2")  # whose maps are of another kind


def test_gradients_through_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_pays", lambda *_, **__: True)
    model = _model()
    packed, used = Prepacked(model, training=True), _used(monkeypatch)
    with packed():
        _assert_same(model)
    assert used
    assert all(each.transposed is not None for each in used)


def test_two_adapters() -> None:
    model = _model()
    put_on(model, small("lora"), "b")
    _assert_same(model)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_with_dropout(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    used = _used(monkeypatch)
    _assert_same(_model(recipe=small("lora", dropout=rate)))
    assert bool(used) == (rate < 0.2)  # whose places are listed


def test_a_weight_that_is_overwritten_meanwhile_is_found_out() -> None:
    model = _model()
    loss = model(IDS).logits.square().mean()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="overwritten"):
        loss.backward()


def _twice(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output * 2


def _seen_first(linear: Any) -> None:
    linear.register_forward_hook(_twice, prepend=True)


def _trained(linear: Any) -> None:
    linear.weight.requires_grad_()


def _wrapped(linear: Any) -> None:
    before = linear.forward
    linear.forward = lambda states: before(states) * 2


@pytest.mark.parametrize("change", [_seen_first, _trained, _wrapped])
def test_a_map_that_somebody_else_had_a_hand_in_keeps_its_own_backward_pass(change: Callable[[Any], None]) -> None:
    model = _model()
    change(model.model.layers[1].mlp.up_proj)
    _assert_same(model)


def test_second_derivatives() -> None:
    model = _model()
    parameters = [p for adapter in la.attached(model).values() for p in adapter.parameters()]
    found = []
    for known in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not known:
                patch.setattr(SiteHook, "_frozen", lambda *_: None)
            patch.setattr(model.config, "_attn_implementation", "eager")
            loss = model(IDS).logits.square().mean()
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            length = sum((each.square().sum() for each in first), torch.zeros(()))
            found.append(torch.autograd.grad(length, parameters))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there)
