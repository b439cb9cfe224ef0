"""Dropout that remembers a seed: neither its mask nor what it leaves is held for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_adapters.model.recomputed import recomputed


def dropped(x: Tensor, rate: float) -> Tensor:
    """``x`` with zeros at a share ``rate`` of its places; to be scaled by 1/(1-rate), where that is cheap.

    One number is drawn of torch's generator on the CPU, whatever device ``x`` is on.
    """
    if torch.compiler.is_compiling():
        return torch.nn.functional.dropout(x, rate) * (1 - rate)
    seed = int(torch.randint(1 << 62, ()))
    return recomputed(_Dropped.apply, x, seed, rate)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: int, rate: float) -> Tensor:
        ctx.seed, ctx.rate = seed, rate
        return _mask(x, seed, rate).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return _mask(outer[0], ctx.seed, ctx.rate).mul_(outer[0]), None, None


def _mask(like: Tensor, seed: int, rate: float) -> Tensor:
    """Zeros at a share ``rate`` of the places, and ones."""
    mask = torch.empty_like(like, memory_format=torch.contiguous_format)
    if mask.is_meta:  # which has no random numbers to give
        return mask
    return mask.bernoulli_(1 - rate, generator=torch.Generator(mask.device).manual_seed(seed))
