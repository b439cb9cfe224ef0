"""Attention of all packed documents by one kernel: on a GPU a loop over them spends its time on launches.

What a document sees besides its own tokens – virtual tokens, a beginning that it shares – stands before its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_adapters.model import flash_kernel
from llm_adapters.model.flash_kernel import Bounds
from llm_adapters.model.memory import sent

Lengths = tuple[tuple[int, ...], ...]
Spans = tuple[tuple[tuple[int, int], ...], ...]

_BEYOND = ("softcap", "s_aux", "position_bias", "cache")  # what an attention may be given, not this one


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in flattened rows the documents stand, and what each of them sees.

    Attributes:
        bounds: of the documents among queries, and of what they see.
        seen: of the columns of all rows those that the documents see, one document after the other; None if just so.
        own: of ``seen``, the documents' own tokens.
        columns: of all rows, the documents' own.
        repeated: the first column of what several documents see besides, how many, and where in ``seen``, (n · columns)
    """

    bounds: Bounds
    seen: Tensor | None
    own: Tensor | None
    columns: Tensor | None
    repeated: Sequence[tuple[int, int, Tensor]]


@lru_cache(maxsize=16)
def layout_of(before: int, documents: Lengths, shared: Lengths, virtual: Spans, device: torch.device) -> Layout:
    """The layout of rows of ``before`` virtual tokens and these documents; the same in every layer of a pass.

    Args:
        before: virtual tokens of every row.
        documents: their lengths, by row.
        shared: how many first tokens of the last one with 0 here each of them sees, by row.
        virtual: which virtual tokens (from, to) each of them sees, by row.
        device: of the tensors.
    """
    seen: list[int] = []
    own: list[int] = []
    places: dict[tuple[int, int], list[int]] = {}
    queries, keys, row_start = [0], [0], 0
    for lengths, beginnings, spans in zip(documents, shared, virtual, strict=True):
        start = owner = row_start + before
        for length, beginning, (first, last) in zip(lengths, beginnings, spans, strict=True):
            owner = owner if beginning else start
            for column, width in ((row_start + first, last - first), (owner, beginning)):
                if width:
                    places.setdefault((column, width), []).extend(range(len(seen), len(seen) + width))
                    seen.extend(range(column, column + width))
            own.extend(range(len(seen), len(seen) + length))
            seen.extend(range(start, start + length))
            start += length
            queries.append(queries[-1] + length)
            keys.append(len(seen))
        row_start = start

    def there(numbers: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return sent(torch.tensor(numbers, dtype=dtype), device)

    longest = [max(b - a for a, b in pairwise(ends)) for ends in (queries, keys)]
    plain = seen == list(range(row_start))
    return Layout(
        Bounds(there(queries, torch.int32), there(keys, torch.int32), (longest[0], longest[1])),
        seen=None if plain else there(seen),
        own=None if plain else there(own),
        columns=None if plain else there([seen[place] for place in own]),
        repeated=[(column, width, there(found)) for (column, width), found in places.items()],
    )


class _Attention(torch.autograd.Function):
    """The kernel over what documents see of (columns, H_kv, d) keys and values, which is gathered again afterwards.

    Every gradient is added up in a fixed order.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 – autograd hands on by position
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, left: int, scale: float | None
    ) -> Tensor:
        k, v = _seen(key, layout), _seen(value, layout)
        found = flash_kernel.forward(query, k, v, bounds=layout.bounds, left=left, scale=scale)
        ctx.save_for_backward(query, key, value, *found)
        ctx.layout, ctx.left, ctx.scale = layout, left, scale
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *found = ctx.saved_tensors
        layout: Layout = ctx.layout
        k, v = _seen(key, layout), _seen(value, layout)
        of_q, of_k, of_v = flash_kernel.backward(
            outer[0], query, k, v, found, bounds=layout.bounds, left=ctx.left, scale=ctx.scale
        )
        return of_q, _gathered(of_k, key, layout), _gathered(of_v, value, layout), None, None, None


def _seen(states: Tensor, layout: Layout) -> Tensor:
    return states if layout.seen is None else states.index_select(0, layout.seen)


def _gathered(gradient: Tensor, states: Tensor, layout: Layout) -> Tensor:
    """The gradient of ``states`` from that of what the documents see of them."""
    if layout.seen is None or layout.own is None or layout.columns is None:
        return gradient
    found = gradient.index_select(0, layout.own)
    if len(found) < len(states):  # there are virtual tokens
        found = states.new_zeros(states.shape).index_copy_(0, layout.columns, found)
    for column, width, places in layout.repeated:
        found[column : column + width] += gradient.index_select(0, places).unflatten(0, (-1, width)).sum(0)
    return found


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, layout: Layout, window: int | None, scale: float | None
) -> Tensor:
    """Causal attention of every document to itself and what it sees besides.

    Args:
        query: (B, H, T, d).
        key, value: (B, H_kv, P+T, d).
        layout: where the documents stand.
        window: tokens that a token sees, its own counted; None for all.
        scale: of the products; None for 1/√d.

    Returns:
        (B, T, H, d).
    """
    left = -1 if window is None else window - 1
    found: Tensor = _Attention.apply(_flat(query), _flat(key), _flat(value), layout, left, scale)
    return found.unflatten(0, (query.shape[0], -1))


def _flat(states: Tensor) -> Tensor:
    """(B, H, T, d) as (B·T, H, d)."""
    return states.transpose(1, 2).flatten(0, 1)


def takes(module: Any, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether :func:`attention` computes what a layer asks for without a mask; known after a trial on its device."""
    head = query.shape[-1]
    if not flash_kernel.works_on(query.device, query.dtype, head):
        return False
    if not query.dtype == key.dtype == value.dtype or not head == key.shape[-1] == value.shape[-1]:
        return False
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return False
    return not options.get("dropout") and all(options.get(name) is None for name in _BEYOND)


def try_for(model: Any, places: Iterable[tuple[torch.device, torch.dtype]] = ()) -> None:
    """Try the kernel wherever ``model`` has weights, and at ``places``, with heads of its size."""
    config = model.config.get_text_config(decoder=True)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {(weight.device, weight.dtype) for weight in model.parameters() if weight.is_floating_point()}
    flash_kernel.try_on(found | set(places), int(head))
