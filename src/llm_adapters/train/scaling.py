"""Loss scaling for a base in float16, where the gradient of a mean over thousands of tokens is too small a number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_MOST = 10


def loss_scale(dtype: torch.dtype, tokens: int) -> float:
    """What the mean loss of a batch is multiplied with before its backward pass; 1 unless the base is in float16.

    A power of two, so that what is divided by it again is rounded nowhere, and at most the number of tokens (and 1024),
    so that no token's gradient is larger than that of its loss alone.

    Args:
        dtype: of the base.
        tokens: that the mean is over.
    """
    return float(1 << min(_MOST, tokens.bit_length() - 1)) if dtype == torch.float16 and tokens else 1.0


def unscale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Divide gradients by the scale of their loss."""
    for parameter in parameters if scale != 1 else ():
        if parameter.grad is not None:
            parameter.grad.div_(scale)
