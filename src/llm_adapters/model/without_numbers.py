"""What meta tensors cannot do, so that a model can go through the motions without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_QUESTIONS = (Tensor.__bool__, Tensor.__contains__, Tensor.item)


class WithoutNumbers(TorchFunctionMode):
    """Makes up for what meta tensors cannot do.

    Questions about numbers (is nothing padded? is there a pad token in the input?) are answered no. A product grouped
    by experts is one of the same shape by the first expert.
    """

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _QUESTIONS and args[0].is_meta:
            return False
        if "grouped_mm" in getattr(func, "__name__", "") and args[0].is_meta:
            return args[0] @ args[1][0]
        return func(*args, **(kwargs or {}))
