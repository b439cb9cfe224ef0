"""A key–value cache for continuous batching: written in place, right-aligned; rows leave and come while others stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

_ROOM = 128  # columns allocated ahead; on a CPU they take no memory before they are used


class SlabLayer(DynamicLayer):
    """One layer's keys and values in one allocation of (rows, H, capacity, d), of which some are in use.

    These are the first ``count`` rows, and columns ``low`` to ``high``.

    Where :class:`DynamicLayer` copies everything for every token, this writes one column. When the columns run out,
    what is in use moves to the front of a new allocation. Columns left of ``low`` are free for a prefix.
    """

    margin = 0
    """Columns that new allocations leave free on the left, for the longest prefix so far."""

    @classmethod
    def empty(cls, keys: Tensor, values: Tensor) -> SlabLayer:
        """A layer without rows or columns, for keys and values like these, (…, H, d)."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer._slabs = [states.new_empty(0, states.shape[-3], 0, states.shape[-1]) for states in (keys, values)]
        layer._show()
        return layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.low = self.high = self.count = 0
        self._slabs: list[Tensor] = []
        super().lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, d) keys and values; returns all that are in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        self.count = key_states.shape[0]
        if not self._slabs or self.high + new > self._slabs[0].shape[2]:
            self._allocate(key_states, value_states, self.high - self.low + new + _ROOM)
        for slab, states in zip(self._slabs, (key_states, value_states), strict=True):
            slab[: self.count, :, self.high : self.high + new] = states
        self.high += new
        self._show()
        return self.keys, self.values

    def behind(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is in use with (B, H, P, d) keys and values before it, without a copy of the rest."""
        length = keys.shape[2]
        if length > self.low:
            self.margin = max(self.margin, length)
            self._allocate(self.keys, self.values, self.high - self.low + _ROOM)
            self._show()
        begin = self.low - length
        for slab, states in zip(self._slabs, (keys, values), strict=True):
            slab[: self.count, :, begin : self.low] = states
        rows, used = slice(self.count), slice(begin, self.high)
        return self._slabs[0][rows, :, used], self._slabs[1][rows, :, used]

    def reserve(self, rows: int, columns: int) -> None:
        """Hold ``rows`` rows and at least ``columns`` columns in use: new ones stand below and on the left."""
        old, _, capacity, _ = self._slabs[0].shape
        missing = max(0, columns - self.high)
        if rows > old or missing:
            fresh = [
                slab.new_empty(rows, slab.shape[1], missing + max(capacity, _ROOM), slab.shape[3])
                for slab in self._slabs
            ]
            for new, slab in zip(fresh, self._slabs, strict=True):
                new[:, :, : missing + self.high] = 0  # masked, but no chance value may be infinite
                new[: self.count, :, missing : missing + self.high] = slab[: self.count, :, : self.high]
            self._slabs, self.low, self.high = fresh, self.low + missing, self.high + missing
        else:
            for slab in self._slabs:
                slab[self.count : rows, :, : self.high] = 0  # no row was there when these columns were written
        self.low, self.count = min(self.low, self.high - columns), rows
        self._show()

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Let ``row`` hold (H, T, d) keys and values that end at the newest column."""
        tokens = keys.shape[1]
        for slab, states in zip(self._slabs, (keys, values), strict=True):
            slab[row, :, self.high - tokens : self.high] = states

    def drop_left(self, columns: int) -> None:
        """Forget the oldest ``columns``: no row sees them any more."""
        self.low += columns
        self._show()

    @property
    def bytes_a_column(self) -> int:
        """Memory of one row's keys and values in one column."""
        return sum(slab.shape[1] * slab.shape[3] * slab.element_size() for slab in self._slabs)

    def keep(self, rows: Sequence[int], seen: Sequence[int]) -> None:
        """Move some rows, in rising order, to the front; each takes along as many newest columns as it sees."""
        for slab in self._slabs:
            if slab.device.type != "cpu":  # where a call costs more than what it copies
                used = slice(self.high - max(seen, default=0), self.high)
                slab[: len(rows), :, used] = slab[:, :, used][torch.tensor(rows, device=slab.device)]
                continue
            for place, (row, columns) in enumerate(zip(rows, seen, strict=True)):
                if place != row:
                    slab[place, :, self.high - columns : self.high] = slab[row, :, self.high - columns : self.high]
        self.count = len(rows)
        self._show()

    def _allocate(self, keys: Tensor, values: Tensor, columns: int) -> None:
        used, begin = self.high - self.low, self.margin
        columns += begin
        fresh = [states.new_empty(*states.shape[:2], columns, states.shape[3]) for states in (keys, values)]
        for new, old in zip(fresh, self._slabs, strict=False):
            new[:, :, :begin] = 0
            new[:, :, begin : begin + used] = old[: self.count, :, self.low : self.high]
        self._slabs, self.low, self.high = fresh, begin, begin + used

    def _show(self) -> None:
        self.keys, self.values = (slab[: self.count, :, self.low : self.high] for slab in self._slabs)
