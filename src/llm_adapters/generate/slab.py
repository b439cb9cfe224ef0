"""A key–value cache for continuous batching: written in place, right-aligned, rows replaced while others go on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # columns allocated ahead


class SlabLayer(DynamicLayer):
    """One layer's keys and values in one allocation of (B, H, capacity, d); columns ``low`` to ``high`` are in use.

    Where :class:`DynamicLayer` copies everything for every token, this writes one column. When the columns run out,
    what is in use moves to the front of a new allocation.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.low = self.high = 0
        self._slabs: list[Tensor] = []
        super().lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, d) keys and values; returns all that are in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        if not self._slabs or self.high + new > self._slabs[0].shape[2]:
            self._allocate(key_states, value_states, self.high - self.low + new + _ROOM)
        for slab, states in zip(self._slabs, (key_states, value_states), strict=True):
            slab[:, :, self.high : self.high + new] = states
        self.high += new
        self._show()
        return self.keys, self.values

    def put(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Let ``rows`` hold (R, H, W, d) keys and values that end at the newest column.

        Columns are taken into use on the left when W is more than there are.
        """
        width = keys.shape[2]
        missing = width - self.high
        if missing > 0:
            self._slabs = [nn.functional.pad(slab, (0, 0, missing, 0)) for slab in self._slabs]
            self.low, self.high = self.low + missing, self.high + missing
        self.low = min(self.low, self.high - width)
        for slab, states in zip(self._slabs, (keys, values), strict=True):
            slab[rows, :, self.high - width : self.high] = states
        self._show()

    def add_places(self, count: int) -> None:
        """Make room for ``count`` more rows."""
        self._slabs = [nn.functional.pad(slab, (0, 0, 0, 0, 0, 0, 0, count)) for slab in self._slabs]
        self._show()

    def drop_left(self, columns: int) -> None:
        """Forget the oldest ``columns``: no row sees them any more."""
        self.low += columns
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows ``indices``."""
        self._slabs = [slab[indices] for slab in self._slabs]
        self._show()

    def _allocate(self, keys: Tensor, values: Tensor, columns: int) -> None:
        used = self.high - self.low
        fresh = [states.new_zeros(*states.shape[:2], columns, states.shape[3]) for states in (keys, values)]
        for new, old in zip(fresh, self._slabs, strict=False):
            new[:, :, :used] = old[:, :, self.low : self.high]
        self._slabs, self.low, self.high = fresh, 0, used

    def _show(self) -> None:
        self.keys, self.values = (slab[:, :, self.low : self.high] for slab in self._slabs)
