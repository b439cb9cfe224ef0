from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_adapters.errors import UserError
from llm_adapters.generate import generate, memory
from tiny import tiny_model

PROMPTS = [[(7 * i + 3 * j) % 90 + 3 for j in range(1 + (5 * i) % 11)] for i in range(26)]


def _scarce(model: Any, rows: int, message: Callable[[], RuntimeError]) -> list[int]:
    """Let a forward pass of more than ``rows`` rows fail; gives the sizes of those that did not."""
    sizes: list[int] = []

    def check(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Tensor]) -> None:
        if kwargs["input_ids"].shape[0] > rows:
            raise message()
        sizes.append(kwargs["input_ids"].shape[0])

    model.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


@pytest.mark.parametrize(
    "message",
    [lambda: torch.OutOfMemoryError("CUDA out of memory"), lambda: RuntimeError("[enforce] can't allocate memory: 9")],
)
def test_half_as_many_rows_go_on_when_memory_runs_out(message: Callable[[], RuntimeError]) -> None:
    expected = {c.prompt: c for c in generate(tiny_model("llama"), PROMPTS, max_new_tokens=9, stop_ids={3, 9, 40})}
    model = tiny_model("llama")
    sizes = _scarce(model, 5, message)
    got = list(generate(model, PROMPTS, max_new_tokens=9, stop_ids={3, 9, 40}, batch_size=16))
    assert {c.prompt: c for c in got} == expected
    assert len(got) == len(PROMPTS)
    assert max(sizes) > 1


def test_memory_that_does_not_suffice_for_one_row_is_said() -> None:
    model = tiny_model("llama")
    _scarce(model, 0, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(UserError, match="memory does not suffice for one prompt"):
        list(generate(model, PROMPTS, max_new_tokens=9, stop_ids=()))


def test_another_failure_is_not_swallowed() -> None:
    model = tiny_model("llama")
    _scarce(model, 0, lambda: RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        list(generate(model, PROMPTS, max_new_tokens=9, stop_ids=()))


def test_the_batch_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 10**9)
    few = memory.rows_that_fit(bytes_a_token=46_080, columns=1000, vocabulary=50_000, device=cpu)
    assert few == int(0.5e9 // (2 * 46_080 * 1000 + 12 * 50_000))
    assert memory.rows_that_fit(bytes_a_token=10, columns=10, vocabulary=100, device=cpu) == memory.MOST_ROWS
    assert memory.rows_that_fit(bytes_a_token=1e9, columns=1000, vocabulary=100, device=cpu) == 1

    seen: list[int] = []
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 100_000)
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True)
    list(generate(model, PROMPTS, max_new_tokens=30, stop_ids=()))
    assert 1 < max(seen) < len(PROMPTS)
