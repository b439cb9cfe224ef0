"""The backward pass of a frozen linear map, for a form that adds to its output and passes both gradients on at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from llm_adapters.model import prepacked


@dataclass(frozen=True, eq=False, slots=True)
class FrozenLinear:
    """``x → x Wᵀ``, of which only x has a gradient; with an offset or without.

    Attributes:
        weight: W (d_out, d_in).
        transposed: Wᵀ in the layout of the processor's kernels, if it is at hand.
        version: of W when the output was computed.
    """

    weight: Tensor
    transposed: Tensor | None
    version: int

    def gradient(self, outer: Tensor) -> Tensor:
        """That of x (N, d_in), in a tensor of its own, from that of the output (N, d_out).

        Raises:
            RuntimeError: W was overwritten since, as by merging an adapter into it.
        """
        if self.weight._version != self.version:
            raise RuntimeError("a frozen weight that the backward pass needs was overwritten after the forward pass")
        if self.transposed is None or torch.is_grad_enabled():  # these products have no derivatives
            return outer @ self.weight
        return prepacked.product(outer, self.transposed, None)


def frozen_linear(module: nn.Module) -> FrozenLinear | None:
    """What ``module`` computes, if it is a frozen linear map as PyTorch has it, and nobody's own kind."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or module.weight.requires_grad:
        return None
    if module.bias is not None and module.bias.requires_grad:
        return None
    forward = vars(module).get("forward")
    if forward is None:
        return FrozenLinear(module.weight, None, module.weight._version)
    if isinstance(forward, partial) and forward.func is prepacked.linear:
        _, _, transposed = forward.args
        return FrozenLinear(module.weight, transposed, module.weight._version)
    return None
