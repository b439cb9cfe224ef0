from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llm_adapters.data.collate import collate
from llm_adapters.data.encoding import Encoded
from llm_adapters.model import find_sites
from llm_adapters.model.head import find_head
from llm_adapters.train import loss as loss_module
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import count
from llm_adapters.train.loss import CrossEntropy, HeadLoss, labelled_tokens, summed_loss, token_losses
from tiny import ALL_FAMILIES, put_on, small, tiny_config, tiny_model
from tiny_training import examples


def _row(ids: list[int], prompt: int) -> Encoded:
    return Encoded(ids, [-100] * prompt + ids[prompt:], truncated=False)


def test_loss_over_labelled_columns_is_the_textbook_loss() -> None:
    rows = [_row([3, 4, 5, 6, 7, 8], 2), _row([9, 10, 11, 12], 3), _row([13, 14, 15, 16, 17], 4)]
    batch = collate(rows, pad_id=0)
    for family in ("llama", "bloom", "gptj"):
        model = tiny_model(family)
        summed = float(summed_loss(model, batch).detach())
        expected = 0.0
        for row in rows:  # one row at a time, without padding
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
            expected += float(F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
        assert abs(summed - expected) < 1e-4 * abs(expected), family
    assert [labelled_tokens(row.labels) for row in rows] == [4, 1, 1]


def _both(logits: torch.Tensor, targets: torch.Tensor, shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The same value and the same gradient as torch's own loss, behind ``shape``."""
    found, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = CrossEntropy.apply(shape(found), targets)
    expected = F.cross_entropy(shape(wanted).float(), targets, reduction="none")
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5)
    weights = torch.arange(len(targets)) / len(targets)  # every token counts in its own way
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    assert found.grad is not None
    assert wanted.grad is not None
    assert torch.allclose(found.grad, wanted.grad, atol=1e-6 if logits.dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["as it is", "product", "soft-capped", "rows"])
def test_the_gradient_in_the_place_of_the_logits_is_the_textbook_gradient(dtype: torch.dtype, shape: str) -> None:
    weight = torch.randn(50, 50).to(dtype)
    shapes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "as it is": lambda x: x,  # a leaf, which must not be overwritten
        "product": lambda x: x[None] @ weight,
        "soft-capped": lambda x: 3 * torch.tanh(x @ weight / 3),
        "rows": lambda x: torch.tanh(x)[torch.arange(40)],
    }
    given = 20 * torch.randn(40, 50).to(dtype)
    whole = shapes[shape]
    _both(given, torch.randint(0, 50, (40,)), lambda x: whole(x).flatten(0, -2))
    kept = given.clone().requires_grad_()
    CrossEntropy.apply(kept, torch.zeros(40, dtype=torch.long))
    assert torch.equal(kept.detach(), given)


def test_many_chunks_and_a_second_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK", 130)  # two lines at a time, the last alone
    _both(torch.randn(41, 50), torch.randint(0, 50, (41,)), lambda x: x * 1)
    logits = torch.randn(3, 5, requires_grad=True)
    loss = CrossEntropy.apply(logits * 1, torch.tensor([0, 1, 2])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


OTHERWISE = {"cohere", "cohere2", "gemma2", "granite", "granitemoe", "nanochat"}
"""Of the families those that do more to their logits: scales, soft-capping."""


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_logits_made_in_parts_give_the_same_losses_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model(family)
    adapter = put_on(model, small("lora"), "a")
    batches = Batches(model, pad_id=0, device=torch.device("cpu"))
    assert (batches.head is None) == (family in OTHERWISE)
    if batches.head is None:
        return
    made: list[int] = []
    batches.head.layer.register_forward_hook(lambda _module, _given, out: made.append(out[..., 0].numel()))
    monkeypatch.setattr(loss_module, "LOGITS", 7 * 4 * batches.head.vocabulary)
    tensors = batches.tensors(examples(6))
    found = []
    for head in (None, batches.head):
        made.clear()
        with batches.in_force():
            losses = token_losses(model, tensors, head)
            (losses * torch.linspace(1, 2, len(losses))).sum().backward()
        found.append([losses.detach(), *(p.grad for p in adapter.parameters() if p.grad is not None)])
        adapter.zero_grad(set_to_none=True)
    assert max(made) == 7
    assert sum(made) == len(found[0][0])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), batches.in_force():
        torch.testing.assert_close(token_losses(model, tensors, batches.head), found[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_logits_hold_less(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = type(tiny_model("llama"))
    with torch.device("meta"):
        model = kind(tiny_config("llama", vocab_size=5000)).to(dtype)
    put_on(model, small("lora"), "a")
    batches = Batches(model.train(), pad_id=0, device=torch.device("cpu"))
    at_once = count(model, batches, examples(6))
    monkeypatch.setattr(loss_module, "LOGITS", 1)
    assert count(model, batches, examples(6)).peak_bytes < at_once.peak_bytes
    head, batches.head = batches.head, None
    assert head is not None
    assert at_once.saved_bytes < count(model, batches, examples(6)).saved_bytes
    assert at_once.operations == count(model, batches, examples(6)).operations


def test_a_head_that_is_trained_is_left_to_the_model() -> None:
    model = tiny_model("llama").requires_grad_(False)
    assert find_head(model, find_sites(model)) is not None
    model.lm_head.weight.requires_grad_(True)
    assert find_head(model, find_sites(model)) is None


def test_a_model_that_changes_what_its_decoder_is_given_keeps_its_head() -> None:
    """What the decoder gives alone is then not what it gives inside the model."""

    class Louder(type(tiny_model("llama"))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            return super().forward(inputs_embeds=3 * self.get_input_embeddings()(input_ids), **options)

    model = tiny_model("llama").requires_grad_(False)
    model.__class__ = Louder
    assert find_head(model, find_sites(model)) is None


def test_a_second_backward_pass_through_parts_is_refused() -> None:
    model = tiny_model("llama").requires_grad_(False)
    head = find_head(model, find_sites(model))
    assert head is not None
    states = torch.randn(5, model.config.hidden_size, requires_grad=True)
    loss = HeadLoss.apply(states, head, torch.arange(5)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
