from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from llm_adapters.data.collate import collate
from llm_adapters.data.encoding import Encoded
from llm_adapters.train import loss as loss_module
from llm_adapters.train.loss import CrossEntropy, labelled_tokens, summed_loss
from tiny import tiny_model


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
