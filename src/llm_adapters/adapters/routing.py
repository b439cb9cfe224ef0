"""Routing: which adapters each row of a batch goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_adapters.errors import RouteError, nearest

RowRoute = str | Sequence[str] | None
Stack = tuple[str, ...]
Route = Stack | list[Stack]
"""One stack for all rows, or one a row."""
Rows = slice | Tensor | None
"""Rows of a batch: a slice where they are contiguous, indices where not, None for all of them."""


@dataclass(frozen=True, eq=False)
class LayerPrefix:
    """What stands before the keys and values of one layer, for every row of the batch.

    Attributes:
        keys, values: (B, H, P, d_key) and (B, H, P, d_value).
        visible: (B, P), False where a row has fewer virtual tokens than the longest; None if all are visible.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor | None


@dataclass(eq=False)
class Pass:
    """What the hooks need to know about the forward pass under way.

    Attributes:
        batch: number of rows B.
        rows: for every adapter taking part, its rows.
        stacks: for every distinct combination of adapters, its rows; they partition the batch.
        prefix: by layer, what stands before its keys and values.
        masks: attention masks already widened in this pass, as (mask, prefix, widened).
    """

    batch: int
    rows: dict[str, Rows]
    stacks: dict[Stack, Rows]
    prefix: dict[int, LayerPrefix] = field(default_factory=dict)
    masks: list[tuple[Tensor | None, LayerPrefix, int, Tensor | None]] = field(default_factory=list)


def read_route(route: RowRoute | Sequence[RowRoute], known: Sequence[str], expand: int = 1) -> Route:
    """A route as one stack of adapters for all rows, or as one a row, each ``expand`` times.

    A list of one entry holds for all rows, as a single name does.

    Raises:
        RouteError: an adapter is not attached, or the route is empty.
    """
    rows: Sequence[RowRoute] = [route] if route is None or isinstance(route, str) else list(route)
    if not rows:
        raise RouteError("the route is empty", mend="name one adapter (or None) a row, or one for all rows")
    stacks = [_stack(row) for row in rows]
    for name in (name for stack in stacks for name in stack):
        if name not in known:
            close = nearest(str(name), known)
            raise RouteError(
                f"the route names adapter '{name}', which is not attached",
                allowed=[*known, "None"],
                mend=f"route '{close}'" if close else "attach it first",
            )
    if len(stacks) == 1:
        return stacks[0]
    return [stack for stack in stacks for _ in range(expand)]


def _stack(row: RowRoute) -> Stack:
    """One row of a route as the tuple of its adapters."""
    if row is None or isinstance(row, str):
        return () if row is None else (row,)
    if not isinstance(row, list | tuple):
        raise RouteError(f"a row of the route is {row!r}", mend="name an adapter, several in a list, or None")
    if len(set(row)) < len(row):
        raise RouteError(f"a row of the route names an adapter twice: {list(row)}", mend="name each once a row")
    return tuple(row)


def resolve(route: Route, batch: int, device: torch.device) -> Pass:
    """Spread a route over ``batch`` rows: one stack for all of them, or a list with one each.

    Raises:
        RouteError: the list has another length.
    """
    if isinstance(route, list) and len(route) != batch:
        raise RouteError(
            f"the route has {len(route)} rows, the batch {batch}",
            mend="name one adapter (or None) a row; with k beams or samples a prompt: route(model, rows, expand=k)",
        )
    members: dict[Stack, list[int]] = {}
    for i in range(batch):
        members.setdefault(route[i] if isinstance(route, list) else route, []).append(i)
    by_name: dict[str, list[int]] = {}
    for stack, indices in members.items():
        for name in stack:
            by_name.setdefault(name, []).extend(indices)
    return Pass(
        batch,
        {name: _compact(sorted(indices), batch, device) for name, indices in by_name.items()},
        {stack: _compact(indices, batch, device) for stack, indices in members.items()},
    )


def _compact(indices: list[int], batch: int, device: torch.device) -> Rows:
    if len(indices) == batch:
        return None
    if indices[-1] - indices[0] + 1 == len(indices):
        return slice(indices[0], indices[-1] + 1)
    return torch.tensor(indices, device=device)
