"""Attention of all packed documents in one call of torch's kernel for variable lengths, where a trial shows that it is.

On a GPU a loop over documents spends its time on launching kernels. The kernel computes in half precision; its causal
mask is aligned at the end, so what a document sees besides its own tokens simply stands before its keys.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Lengths = tuple[tuple[int, ...], ...]
Spans = tuple[tuple[tuple[int, int], ...], ...]

_DTYPES = (torch.float16, torch.bfloat16)
_BEYOND = ("softcap", "s_aux", "position_bias", "cache")  # what an attention may be given, not this one
_TRIAL = ((5, [2, 3, 4, 5, 6]), (3, [2, 3, 4, 7, 8, 9]), (4, [0, 1, 10, 11, 12, 13]))  # tokens, and what they see
_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in flattened rows the documents stand, and what each of them sees.

    Attributes:
        queries, keys: (N+1,) where each of the N documents begins, among queries and among ``seen``, and where all end.
        longest: tokens of the longest, among both.
        seen: of the columns of all rows those that the documents see, one document after the other; None if just so.
        own: of ``seen``, the documents' own tokens.
        columns: of all rows, the documents' own.
        repeated: the first column of what several documents see besides, how many, and where in ``seen``, (n · columns)
    """

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]
    seen: Tensor | None
    own: Tensor | None
    columns: Tensor | None
    repeated: Sequence[tuple[int, int, Tensor]]


@lru_cache(maxsize=16)
def layout_of(before: int, documents: Lengths, shared: Lengths, virtual: Spans, device: torch.device) -> Layout:
    """The layout of rows of ``before`` virtual tokens and these documents.

    It is the same in every layer of a pass, and making it anew would wait for the device each time.

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

    def counts(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    def indices(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    longest = [max(b - a for a, b in pairwise(ends)) for ends in (queries, keys)]
    plain = seen == list(range(row_start))
    return Layout(
        counts(queries), counts(keys), (longest[0], longest[1]),
        seen=None if plain else indices(seen),
        own=None if plain else indices(own),
        columns=None if plain else indices([seen[place] for place in own]),
        repeated=[(column, width, indices(found)) for (column, width), found in places.items()],
    )  # fmt: skip


def kernel(q: Tensor, k: Tensor, v: Tensor, *, layout: Layout, left: int, scale: float | None) -> tuple[Tensor, ...]:
    """Attention (Q, H, d) of q (Q, H, d) to k and v (K, H_kv, d), and three tensors more for its backward pass.

    Args:
        left: how many tokens back one sees; -1 for all.
    """
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        q, k, v, layout.queries, layout.keys, *layout.longest, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return found[:4]


def kernel_backward(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, found: Sequence[Tensor], *, layout: Layout, left: int, scale: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of the attention and all that :func:`kernel` gave."""
    out, sums, state, unused = found
    with _in_fixed_order():
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            outer, q, k, v, out, sums, layout.queries, layout.keys, *layout.longest, 0.0, True, state, unused,
            scale=scale, window_size_left=left, window_size_right=0,
        )  # fmt: skip
    return gradients


@contextmanager
def _in_fixed_order() -> Iterator[None]:
    options: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), options.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    options.fill_uninitialized_memory = False  # a check for others, which takes time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        options.fill_uninitialized_memory = before[1]


class _Attention(torch.autograd.Function):
    """The kernel over what documents see of (columns, H_kv, d) keys and values, which is gathered again afterwards.

    Every gradient is added up in a fixed order: the same numbers give the same bits.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 – autograd hands on by position
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, left: int, scale: float | None
    ) -> Tensor:
        found = kernel(query, _seen(key, layout), _seen(value, layout), layout=layout, left=left, scale=scale)
        ctx.save_for_backward(query, key, value, *found)
        ctx.layout, ctx.left, ctx.scale = layout, left, scale
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *found = ctx.saved_tensors
        layout: Layout = ctx.layout
        of_q, of_k, of_v = kernel_backward(
            outer[0],
            query,
            _seen(key, layout),
            _seen(value, layout),
            found,
            layout=layout,
            left=ctx.left,
            scale=ctx.scale,
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
    if not _tried.get((query.device, query.dtype)):
        return False
    head = query.shape[-1]
    if not query.dtype == key.dtype == value.dtype or not head == key.shape[-1] == value.shape[-1]:
        return False
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return False
    beyond = options.get("dropout") or any(options.get(name) is not None for name in _BEYOND)
    return not beyond and head % 8 == 0 and head <= 256


def try_on(places: Iterable[tuple[torch.device, torch.dtype]]) -> None:
    """Find out whether torch's kernel gives values and gradients of the formula on these devices.

    A release whose kernel does not is passed over, with a warning. It is for before a training, as Liger's trial is.
    """
    for device, dtype in places:
        if device.type == "cuda" and dtype in _DTYPES and (device, dtype) not in _tried:
            with torch.enable_grad():
                _tried[device, dtype] = _works(device, dtype)


def _works(device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, heads, length, 64, generator=generator) for heads, length in ((4, 12), (2, 14), (2, 14))]
    layout = layout_of(2, ((5, 3, 4),), ((0, 3, 0),), (((0, 0), (0, 0), (0, 2)),), device)
    works, why = True, "its numbers are not those of the formula"
    try:
        for window in (None, 3):
            found, wanted = (
                _with_gradients(function, [x.to(device, dtype) for x in drawn])
                for function in (
                    partial(attention, layout=layout, window=window, scale=0.2),
                    partial(_plain, window=window),
                )
            )
            for a, b in zip(found, wanted, strict=True):
                works &= torch.allclose(a.float(), b.float(), rtol=3e-2, atol=3e-2 * float(b.float().abs().max()))
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        works, why = False, str(failure)
    if not works:
        warnings.warn(f"torch's attention for variable lengths is not used in {dtype} on {device}: {why}", stacklevel=4)
    return works


def _plain(query: Tensor, key: Tensor, value: Tensor, *, window: int | None) -> Tensor:
    """What :func:`attention` gives the trial's documents, by the formula."""
    found = []
    for q, (tokens, columns) in zip(query.split([5, 3, 4], dim=2), _TRIAL, strict=True):
        k, v = (states[:, :, columns].repeat_interleave(2, dim=1) for states in (key, value))
        behind = len(columns) - tokens
        near = torch.ones(tokens, len(columns), dtype=torch.bool, device=q.device).tril(behind)
        near = near if window is None else near.triu(behind + 1 - window)
        found.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=0.2))
    return torch.cat(found, dim=2).transpose(1, 2)


def _with_gradients(function: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in given]
    value = function(*leaves)
    value.backward(torch.linspace(-1, 1, value.numel(), device=value.device).view_as(value).to(value.dtype))
    return [value.detach(), *(x.grad for x in leaves if x.grad is not None)]
