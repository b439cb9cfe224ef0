"""The maps of ``fused`` in torch's own operators: written for few passes over memory and little that is saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_HAS_NORM = torch.__version__ >= "2.9"  # to compare versions takes as long as to launch a kernel


def norm(states: Tensor, weight: Tensor, offset: float, epsilon: float) -> Tensor:
    """x / √(mean x² + ε) · (offset + weight), of states (…, d)."""
    factor = weight + offset if offset else weight
    if states.is_cuda and _HAS_NORM:  # its own kernel there saves as little, and is one
        return functional.rms_norm(states, factor.shape, factor, epsilon)
    result: Tensor = _Norm.apply(states, factor, epsilon)
    return result


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, T, d) with the two halves of every head turned; cosines and sines (B, T, d)."""
    cos, sin = cos[:, None], sin[:, None]
    return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up."""
    result: Tensor = _Gated.apply(gate, up)
    return result


def turned(states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """(B, H, T, d) turned, or the transpose of that map; cosines and sines (B, 1, T, d)."""
    half = states.shape[-1] // 2
    first, second = slice(None, half), slice(half, None)
    out = states * cos
    down, up = (second, first) if back else (first, second)
    # Forth, the sine of a half is with that half of the output; back, with that of the gradient.
    out[..., first].addcmul_(states[..., second], sin[..., down], value=1 if back else -1)
    out[..., second].addcmul_(states[..., first], sin[..., up], value=-1 if back else 1)
    return out


class _Norm(torch.autograd.Function):
    """Saves its input, which the residual stream holds anyway, and one number a token; in float32 at least."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=_summed_in(states))
        inverse = size.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        return (states * inverse).mul_(weight).to(states.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        states, weight, inverse = ctx.saved_tensors
        wide, inner = states.to(_summed_in(states)), outer[0].to(_summed_in(states)) * weight
        along = torch.linalg.vecdot(inner, wide)[..., None]
        inner.mul_(inverse).addcmul_(wide, along * inverse**3, value=-1 / states.shape[-1])
        return inner.to(states.dtype), None, None


def _summed_in(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return turned(outer[0], *ctx.saved_tensors, back=True), None, None


class _Gated(torch.autograd.Function):
    """silu(gate) · up; keeps its two inputs, and computes silu once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(outer[0] * up, gate)
        return of_gate, functional.silu(gate).mul_(outer[0])
