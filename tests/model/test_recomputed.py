"""States that are computed again in the backward pass: less is held, the gradients are the same, bit for bit."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llm_adapters as la
from llm_adapters.adapters.forms import LowRank
from llm_adapters.model.recomputed import recomputed, recomputing, saving
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import Ledger
from llm_adapters.train.loss import summed_loss
from tiny import small, tiny_model
from tiny_training import examples


def _trained(model: Any, batches: Batches) -> tuple[int, list[Tensor]]:
    """Bytes held between the passes, and the gradients."""
    ledger = Ledger([*model.parameters(), *model.buffers()])
    with ledger, batches.in_force():
        loss = summed_loss(model, batches.tensors(examples(6)))
        saved = ledger.now
        loss.backward()
    del loss
    assert ledger.now == sum(p.nbytes for p in model.parameters() if p.requires_grad)  # and nothing is left behind
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad(set_to_none=True)
    return saved, gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "series", "parallel", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2", "mixtral", "gptj", "bloom"])
def test_gradients_are_bit_equal_and_no_more_is_held(family: str, method: str, checkpointing: bool) -> None:
    model: Any = tiny_model(family).train()
    la.attach(model, small(method), "a")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batches = Batches(model, pad_id=0, device=torch.device("cpu"))
    saved, found = _trained(model, batches)
    batches._recomputing = nullcontext
    plain, expected = _trained(model, batches)
    assert saved <= plain
    for here, there in zip(found, expected, strict=True):
        assert torch.equal(here, there)


def test_what_lora_reads_is_not_held() -> None:
    """Two normed states, attention joined from its documents, and the gated product: each by a layer and token."""
    model: Any = tiny_model("llama").train()
    la.attach(model, la.method("lora", sites="linears"), "a")
    batches = Batches(model, pad_id=0, device=torch.device("cpu"))
    saved, _ = _trained(model, batches)
    batches._recomputing = nullcontext
    plain, _ = _trained(model, batches)
    tokens, config = sum(len(row.input_ids) for row in examples(6)), model.config
    width = 3 * config.hidden_size + config.intermediate_size
    first = config.hidden_size  # its norm has nothing to take a gradient of, so nobody else keeps the embeddings
    assert plain - saved == pytest.approx(4 * tokens * (width * config.num_hidden_layers - first), rel=0.01)


def test_it_is_computed_once_for_all_who_read_it() -> None:
    calls = []

    def double(x: Tensor) -> Tensor:
        calls.append(x)
        return x * 2

    states = torch.randn(3, 4, requires_grad=True)
    maps = [nn.Linear(4, 4) for _ in range(3)]
    with recomputing(), saving():
        doubled = recomputed(double, states)
        loss = torch.stack([each(doubled) for each in maps]).sum()
        loss.backward(retain_graph=True)
        assert len(calls) == 2
        first = [each.weight.grad.clone() for each in maps if each.weight.grad is not None]
        loss.backward()  # a second time, from the same graph
    assert [torch.equal(each.weight.grad, 2 * before) for each, before in zip(maps, first, strict=True)] == [True] * 3  # type: ignore[arg-type]


def test_one_that_was_changed_since_is_kept() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    linear = nn.Linear(4, 4)
    with recomputing(), saving():
        changed = recomputed(torch.sin, states).mul_(3.0)
        linear(changed).sum().backward()
    assert torch.equal(linear.weight.grad, (3 * states.detach().sin()).sum(0).expand(4, 4))  # type: ignore[arg-type]


def test_what_it_comes_from_must_not_be_overwritten() -> None:
    given = torch.randn(3, 4, requires_grad=True).sin()
    linear = nn.Linear(4, 4)
    with recomputing(), saving():
        loss = linear(recomputed(lambda x: x + 1, given)).sum()
        given.add_(1)
        with pytest.raises(RuntimeError, match="overwritten"):
            loss.backward()


def test_nor_must_what_is_kept() -> None:
    with recomputing(), saving():
        kept = torch.randn(3, 4, requires_grad=True).sin().exp()
        kept.add_(1)
        with pytest.raises(RuntimeError, match="overwritten"):
            kept.sum().backward()


def test_part_of_it_is_kept_as_ever() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    linear = nn.Linear(2, 2)
    with recomputing(), saving():
        linear(recomputed(torch.sin, states)[:, 1:3]).sum().backward()
    assert torch.allclose(linear.weight.grad, states.detach().sin()[:, 1:3].sum(0).expand(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (2, 3, 5, 4)])
def test_one_that_lies_in_another_order_is_kept(shape: tuple[int, ...]) -> None:
    states, outer = torch.randn(shape, requires_grad=True), torch.randn(shape)
    with recomputing(), saving():
        turned = recomputed(torch.sin, states.transpose(1, 2)).transpose(1, 2)
        assert turned.is_contiguous()
        (turned.square() * outer).sum().backward()
    sine = states.detach()
    torch.testing.assert_close(states.grad, 2 * sine.sin() * sine.cos() * outer)


def test_outside_nothing_is_remembered() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    assert not hasattr(recomputed(torch.sin, states), "_llm_adapters_recomputed")
    with recomputing(), torch.no_grad():
        assert not hasattr(recomputed(torch.sin, states), "_llm_adapters_recomputed")


def test_a_lora_lets_go_of_it_in_its_backward_pass() -> None:
    form = LowRank(4, 4, 2, scale=1.0)
    nn.init.normal_(form.B)
    states = torch.randn(3, 4, requires_grad=True)
    with recomputing():
        doubled = recomputed(lambda x: x * 2, states)
        held = weakref.ref(doubled)
        loss = form.add_to(torch.zeros(3, 4), doubled, fresh=True).sum()
        del doubled
        gc.collect()
        assert held() is None
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(loss, [form.B], create_graph=True)
        loss.backward(retain_graph=True)
        expected = torch.autograd.grad(form(states * 2).sum(), [form.A, form.B, states])
        for found, wanted in zip([form.A.grad, form.B.grad, states.grad], expected, strict=True):
            torch.testing.assert_close(found, wanted)
        with pytest.raises(RuntimeError, match="second backward pass"):
            loss.backward()
