"""Dropout that remembers a seed: neither its mask nor what it leaves is held between the passes.

On a CPU, where few are dropped, their places are listed instead of a mask being laid over all: the draws cost a third,
and zeros are set at a twentieth of the places where a product would go through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_adapters.model.recomputed import recomputed

_VALUES = 1 << 16  # of the random bits of one place
_FEW = 0.2  # a rate up to which places are listed
_UNIT = 2.0**-24  # float32 has no more numbers between 0 and 1


def dropped(x: Tensor, rate: float, draw: Draw | None = None) -> Tensor:
    """``x`` with zeros at a share ``rate`` of its places; to be scaled by 1/(1-rate), where that is cheap.

    One number is drawn of torch's generator on the CPU, whatever device ``x`` is on, unless a ``draw`` is given.
    """
    if torch.compiler.is_compiling():
        return torch.nn.functional.dropout(x, rate) * (1 - rate)
    return recomputed(_Dropped.apply, x, draw or Draw.of(rate))


class Draw:
    """What a seed drops, made anew for each pass; what the backward pass computes again lends it to the gradient."""

    def __init__(self, seed: int, rate: float) -> None:
        self.seed, self.rate = seed, rate
        self._forward = True
        self._lent: Tensor | None = None

    @classmethod
    def of(cls, rate: float) -> Draw:
        """A seed from torch's generator on the CPU."""
        return cls(int(torch.randint(1 << 62, (), device="cpu")), rate)

    def lists(self, x: Tensor) -> bool:
        """Whether :meth:`places` says what of ``x`` is dropped; else a mask does."""
        return self.rate <= _FEW and (x.device.type == "cpu" or (x.is_meta and x.dtype == torch.float32))

    def on_states(self, x: Tensor) -> Tensor:
        """``x`` with zeros, in a tensor of its own."""
        found = self._drawn(x)
        self._forward, self._lent = False, None if self._forward else found
        return self._apply(x, found)

    def on_gradient(self, outer: Tensor) -> Tensor:
        """The same of the gradient of what was left; asked for last."""
        found, self._lent = self._lent, None
        return self._apply(outer, self._drawn(outer) if found is None else found)

    def mask(self, like: Tensor) -> Tensor:
        """Ones, and zeros for what is dropped of a tensor of this shape."""
        return self._apply(like.new_ones(like.shape), self._drawn(like))

    def _apply(self, x: Tensor, found: Tensor) -> Tensor:
        if not self.lists(x):
            return x * found
        left = x.clone(memory_format=torch.contiguous_format)
        left.view(-1).index_fill_(0, found, 0.0)
        return left

    def _drawn(self, like: Tensor) -> Tensor:
        return self.places(like.numel(), like.device) if self.lists(like) else self._stays(like)

    def places(self, total: int, device: torch.device) -> Tensor:
        """Where a contiguous tensor of so many numbers has zeros, in order."""
        if device.type == "meta":
            return torch.empty(round(self.rate * total), dtype=torch.int64, device="meta")
        try:
            source, found, last = np.random.SFC64(self.seed), [np.empty(0, np.int64)], -1
            while last < total:
                found.append(self._next(source, last, total))
                last = int(found[-1][-1])
            every = np.concatenate(found)
        except MemoryError as failure:
            raise _out_of_memory() from failure
        return torch.from_numpy(every[: np.searchsorted(every, total)])

    def _next(self, source: Any, last: int, total: int) -> Any:
        """More places, behind ``last``: each is so far from the one before as a geometric distribution says."""
        mean = (total - last) * self.rate
        count = int(mean + 4 * math.sqrt(mean)) + 16
        words = source.random_raw(-(-count // 2)).view(np.uint32)[:count]
        gaps = ((words >> 8).astype(np.float32) + np.float32(0.5)) * np.float32(_UNIT)
        np.log(gaps, out=gaps)
        gaps *= np.float32(1 / math.log1p(-self.rate))
        steps = gaps.astype(np.int64)
        steps += 1
        steps[0] += last
        return np.cumsum(steps, out=steps)

    def _stays(self, like: Tensor) -> Tensor:
        """Ones where a tensor of this shape stays as it is."""
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
        except MemoryError as failure:
            raise _out_of_memory() from failure


def _out_of_memory() -> torch.OutOfMemoryError:
    """NumPy's word for it is not torch's, which all others know."""
    return torch.OutOfMemoryError("out of memory for the draws of dropout")


@contextmanager
def set_aside(x: Tensor, places: Tensor | None, *, zero: bool) -> Iterator[None]:
    """While it lasts, ``x`` (contiguous) has zeros at ``places`` if it shall, and afterwards what it had there.

    Autograd does not see it: nobody else may read ``x`` meanwhile.
    """
    if places is None:
        yield
        return
    flat = x.data.view(-1)
    before = torch.take(flat, places)
    if zero:
        flat.index_fill_(0, places, 0.0)
    try:
        yield
    finally:
        flat.put_(places, before)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Draw) -> Tensor:
        ctx.draw = draw
        return draw.on_states(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return ctx.draw.on_gradient(outer[0]), None
