"""Dropout that remembers a seed: neither its mask nor what it leaves is held between the passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_adapters.model.recomputed import recomputed

_VALUES = 1 << 16  # of the random bits of one place


def dropped(x: Tensor, rate: float) -> Tensor:
    """``x`` with zeros at a share ``rate`` of its places; to be scaled by 1/(1-rate), where that is cheap.

    One number is drawn of torch's generator on the CPU, whatever device ``x`` is on.
    """
    if torch.compiler.is_compiling():
        return torch.nn.functional.dropout(x, rate) * (1 - rate)
    return recomputed(_Dropped.apply, x, _Draw(int(torch.randint(1 << 62, (), device="cpu")), rate))


class _Draw:
    """What a seed drops, made anew for each pass; what the backward pass computes again lends it to the gradient."""

    def __init__(self, seed: int, rate: float) -> None:
        self.seed, self.rate = seed, rate
        self._forward = True
        self._lent: Tensor | None = None

    def of_states(self, x: Tensor) -> Tensor:
        """Ones where ``x`` stays, of its shape."""
        stays = self._stays(x)
        self._forward, self._lent = False, None if self._forward else stays
        return stays

    def of_gradient(self, outer: Tensor) -> Tensor:
        """The same, for the gradient of what was left; asked for last."""
        stays, self._lent = self._lent, None
        return self._stays(outer) if stays is None else stays

    def _stays(self, like: Tensor) -> Tensor:
        if like.is_meta:  # which has no random numbers to give
            # Of as many bytes as a GPU takes in half precision, and a CPU in float32.
            return torch.empty(
                like.shape, dtype=torch.uint8 if like.dtype == torch.float32 else like.dtype, device="meta"
            )
        if like.device.type != "cpu":
            generator = torch.Generator(like.device).manual_seed(self.seed)
            # In the dtype of the states: products of two dtypes take twice as long as drawing.
            stays = torch.empty(like.shape, dtype=like.dtype, device=like.device)
            return stays.bernoulli_(1 - self.rate, generator=generator)
        # Sixteen random bits a place: torch's own draws on a CPU cost ten times as much, more than the adapter.
        try:
            words = np.random.SFC64(self.seed).random_raw(-(-like.numel() // 4)).view(np.uint16)[: like.numel()]
            # Products with bytes are three times as fast as with truth values.
            return torch.from_numpy((words >= round(self.rate * _VALUES)).view(np.uint8)).view(like.shape)
        except MemoryError as failure:  # NumPy's word for what all others know by torch's
            raise torch.OutOfMemoryError("out of memory for a mask of dropout") from failure


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: _Draw) -> Tensor:
        ctx.draw = draw
        return x * draw.of_states(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0] * ctx.draw.of_gradient(outer[0]), None
