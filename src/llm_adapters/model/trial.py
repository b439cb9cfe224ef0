"""A trial of a kernel before it is trusted: where it is wrong or fails, a warning is given and the plain way taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def passed(trial: Callable[[], bool], refusal: str) -> bool:
    """Whether ``trial`` finds a kernel's numbers right; ``refusal`` says what is not used otherwise.

    Raises:
        torch.OutOfMemoryError: there was no memory for it, which says nothing about the kernel.
    """
    try:
        works, why = trial(), "its numbers are not those of the formula"
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        works, why = False, str(failure)
    if not works:
        warnings.warn(f"{refusal}: {why}", stacklevel=5)
    return works
