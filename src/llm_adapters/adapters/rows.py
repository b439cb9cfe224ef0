"""Rows of hidden states: taken out for an adapter, and added to in place, with backward passes that copy little."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llm_adapters.adapters.routing import Rows


def by_row(x: Tensor, batch: int) -> Tensor:
    """``x`` with ``batch`` rows: some layers flatten (B, T, D) to (B·T, D), whose rows are found by their number."""
    return x if x.shape[0] == batch else x.view(batch, -1, x.shape[-1])


def apart(rows: Sequence[Rows]) -> list[int] | None:
    """The order of spans along the batch, if no two have a row in common; None if they have, or are no spans."""
    spans = [span for span in rows if isinstance(span, slice)]
    if len(spans) < len(rows):
        return None
    order = sorted(range(len(spans)), key=lambda i: spans[i].start)
    return order if all(spans[i].stop <= spans[j].start for i, j in pairwise(order)) else None


def cut(x: Tensor, spans: Sequence[slice], batch: int) -> list[Tensor]:
    """The rows of each of some spans in order; their gradients are put together once, not added up for every span."""
    places: list[int] = []
    sizes: list[int] = []
    end = 0
    for span in spans:
        if span.start > end:
            sizes.append(span.start - end)
        places.append(len(sizes))
        sizes.append(span.stop - span.start)
        end = span.stop
    pieces = by_row(x, batch).split([*sizes, batch - end])
    return [pieces[place] for place in places]


def added(y: Tensor, batch: int, rows: Sequence[slice | Tensor], updates: Sequence[Tensor]) -> Tensor:
    """``y``, in place, with each update added to its rows; each (rows, T, D), or (rows, D) if ``y`` is flat."""
    updates = [update.to(y.dtype) for update in updates]  # under autocast a form may answer in another dtype
    if not torch.is_grad_enabled():
        _add(y, batch, rows, updates)
        return y
    result: Tensor = AddRows.apply(y, batch, rows, *updates)
    return result


class AddRows(torch.autograd.Function):
    """``y[rows] += update`` for every update, whose backward pass copies nothing.

    Autograd's own, for a slice that is written in place, copies the whole gradient of ``y`` once for every slice.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, batch: int, rows: Sequence[slice | Tensor], *updates: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.batch, ctx.rows = batch, rows
        _add(y, batch, rows, updates)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        lines = by_row(gradient.contiguous(), ctx.batch)
        return gradient, None, None, *(lines[rows] for rows in ctx.rows)


def _add(y: Tensor, batch: int, rows: Sequence[slice | Tensor], updates: Sequence[Tensor]) -> None:
    lines = by_row(y, batch)
    for own, update in zip(rows, updates, strict=True):
        if isinstance(own, slice):
            lines[own] += update
        else:
            lines.index_add_(0, own, update)
