"""Routing: which adapters each row of a batch goes through."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from llm_adapters.errors import RouteError, nearest

RowRoute = str | Sequence[str] | None
Stack = tuple[str, ...]


@dataclass(frozen=True)
class Spans:
    """A route along the one row of a packed batch: each stack of adapters holds for so many tokens."""

    spans: tuple[tuple[Stack, int], ...]

    @property
    def tokens(self) -> int:
        """Tokens T of the row."""
        return sum(length for _, length in self.spans)

    def stacks_of(self, documents: Sequence[int]) -> list[Stack]:
        """The stack of each document, by the documents' lengths.

        Raises:
            RouteError: a document has tokens of two spans.
        """
        ends = list(accumulate(length for _, length in self.spans))
        found, start = [], 0
        for length in documents:
            place = bisect_right(ends, start)
            start += length
            if place == len(ends) or start > ends[place]:
                raise RouteError("a document lies in two spans of the route", mend="let spans end where documents end")
            found.append(self.spans[place][0])
        return found


Route = Stack | list[Stack] | Spans
"""One stack for all rows, one a row, or one a span of tokens."""
Rows = slice | Tensor | None
"""Rows of a batch: a slice where they are contiguous, indices where not, None for all of them."""


@dataclass(frozen=True, eq=False)
class LayerPrefix:
    """What stands before the keys and values of one layer, for every row of the batch.

    Attributes:
        keys, values: (B, H, P, d_key) and (B, H, P, d_value).
        visible: (B, P), False where a row has fewer virtual tokens than the longest; None if all are visible.
        seen: under a route by spans, the positions (from, to) of the virtual tokens that each stack sees.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor | None
    seen: Mapping[Stack, tuple[int, int]] | None = None


@dataclass(eq=False)
class Pass:
    """What the hooks need to know about the forward pass under way.

    Attributes:
        batch: number of rows B; under a route by spans every token counts as a row.
        rows: for every adapter taking part, its rows.
        stacks: for every distinct combination of adapters, its rows; they partition the batch.
        prefix: by layer, what stands before its keys and values.
        masks: attention masks already widened in this pass, as (mask, prefix, widened).
        spans: the route, if it is one by spans.
        drawn: where each form's random numbers began, for forms that have a stream of their own.
    """

    batch: int
    rows: dict[str, Rows]
    stacks: dict[Stack, Rows]
    prefix: dict[int, LayerPrefix] = field(default_factory=dict)
    masks: list[tuple[Tensor | None, LayerPrefix, int, Tensor | None]] = field(default_factory=list)
    spans: Spans | None = None
    drawn: dict[object, Mapping[str, Tensor]] = field(default_factory=dict)


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


def read_spans(entries: Sequence[RowRoute], tokens: Sequence[int], known: Sequence[str]) -> Spans:
    """A route along the one row of a packed batch: each entry holds for so many tokens.

    Raises:
        RouteError: as :func:`read_route`; or there is not one positive number of tokens an entry.
    """
    if len(entries) != len(tokens) or min(tokens, default=0) < 1:
        raise RouteError(
            f"the route has {len(entries)} entries for spans of {list(tokens)} tokens",
            mend="one number of tokens an entry, each at least 1",
        )
    stacks = [read_route([entry], known) for entry in entries]
    return Spans(
        tuple((stack, length) for stack, length in zip(stacks, tokens, strict=True) if isinstance(stack, tuple))
    )


def _stack(row: RowRoute) -> Stack:
    """One row of a route as the tuple of its adapters."""
    if row is None or isinstance(row, str):
        return () if row is None else (row,)
    if not isinstance(row, list | tuple):
        raise RouteError(f"a row of the route is {row!r}", mend="name an adapter, several in a list, or None")
    if len(set(row)) < len(row):
        raise RouteError(f"a row of the route names an adapter twice: {list(row)}", mend="name each once a row")
    return tuple(row)


def resolve(route: Route, batch: int, device: torch.device, tokens: int = 1) -> Pass:
    """Spread a route over ``batch`` rows: one stack for all of them, or a list with one each.

    Spans are spread over the ``tokens`` of the one row.

    Raises:
        RouteError: the list has another length, or the spans have another number of tokens.
    """
    if isinstance(route, Spans):
        if batch != 1 or route.tokens != tokens:
            raise RouteError(
                f"the route has spans of {route.tokens} tokens together, the batch {batch} rows of {tokens}",
                mend="one row of packed documents, whose tokens are those of the spans",
            )
        current = resolve([stack for stack, length in route.spans for _ in range(length)], tokens, device)
        return replace(current, spans=route)
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
