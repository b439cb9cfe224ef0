"""Running out of memory: fewer rows go through the model at once, and the batch stays what it is."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from llm_adapters.errors import TrainingError
from llm_adapters.model.memory import is_out_of_memory

T = TypeVar("T")


class OutOfMemoryError(TrainingError):
    """A single row does not fit."""


def shrinking(
    work: Callable[[int], T],
    size: int,
    note: Callable[[str], None],
    *,
    rows: int | None = None,
    on_any: Callable[[bool], bool] = bool,
) -> tuple[T, int]:
    """``work(size)``, again with half the size as long as memory runs out; gives the size that went well.

    Args:
        work: may be called again after a failure; it takes back what it had begun.
        size: rows that go through the model at once.
        note: told once of every new size.
        rows: how many there are at most; memory for more was not missing.
        on_any: whether memory ran out on any process, given whether it did on this one.

    Raises:
        TrainingError: a single row is too much.
    """
    while True:
        found: list[T] = []
        try:
            found.append(work(size))
        except RuntimeError as failure:
            if not is_out_of_memory(failure):
                raise
        if not on_any(not found):
            return found[0], size
        found.clear()
        size = size if rows is None else max(1, min(size, rows))
        if size == 1:
            raise OutOfMemoryError(
                "out of memory with a single row at a time",
                mend="a smaller data.max_length, or train.gradient_checkpointing=true",
            )
        # Only here, with the failure and the tensors that its traceback holds gone, can memory be given back.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"out of memory with {size} rows at a time: going on with {(size + 1) // 2}; the batch stays the same")
        size = (size + 1) // 2


def compute_activations_again(model: Any) -> None:
    """Let a model compute its activations again in the backward pass instead of keeping them (gradient checkpointing).

    Raises:
        TrainingError: it cannot.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as failure:
        raise TrainingError(
            f"{type(model).__name__} knows no gradient checkpointing", mend="train.gradient_checkpointing: false"
        ) from failure


def return_freed_memory() -> None:
    """Give back to the system what was freed on the CPU, where the C library keeps it (glibc); else nothing.

    Blocks of other sizes do not fit into what it keeps, so a process whose passes differ grows from pass to pass.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
