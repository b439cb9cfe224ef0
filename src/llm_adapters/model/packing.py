"""Packing: several documents in one row, each attending to itself alone, and not a token of padding.

Linear maps see one long row; attention runs over one document after the other, causal and without a mask, so it costs
what the documents cost alone; on a GPU all of them go through one kernel (``packed_flash``). The lengths travel with
the forward pass as the keyword ``documents``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llm_adapters.model import packed_flash
from llm_adapters.model.recomputed import recomputed

Documents = Sequence[Sequence[int]]
"""Tokens of the documents of every row, in their order; of each row they sum up to T."""


class Unguarded(Sequence[Sequence[Any]]):
    """What is known of the documents of every row that compiled layers hand on as they are.

    Layers that are handed a list are compiled anew for every length of it.
    """

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._rows[row]


PACKED = "llm_adapters_packed"
"""Name of this attention in ``config._attn_implementation``, while :func:`packing` is in force."""

WIDENED = "llm_adapters_packed_float32"
"""Its name where it is computed in float32 while gradients are taken."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # what it does depends on every length
def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    beginnings: Documents | None = None,
    virtual: Sequence[Sequence[tuple[int, int]]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of every document to itself, and to what stands before the whole row.

    Args:
        module: the model's attention layer.
        query: (B, H, T, d).
        key, value: (B, H_kv, P+T, d); P virtual tokens are seen by all documents of the row.
        attention_mask: (B or 1, 1, T, P+T), or None for plain causal attention without virtual tokens.
        documents: lengths; None where every row is one document.
        beginnings: for every document, how many first tokens of the last one with 0 here stand before it too; without
            a mask, and where neither sees virtual tokens.
        virtual: of the P virtual tokens those (from, to) that each document sees, instead of all; the mask then has
            no columns for them.
        options: what the layer hands to any attention; its ``sliding_window`` is obeyed.

    Returns:
        (B, T, H, d), and no weights.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    before = key.shape[2] - query.shape[2]
    if attention_mask is None and packed_flash.takes(module, query, key, value, options):
        window = _window(options.get("sliding_window"), before, documents, beginnings)
        scale = options.get("scaling")
        if window is None or not before:  # the kernel would count virtual tokens as distance
            return _at_once(query, key, value, documents, beginnings, virtual=virtual, window=window, scale=scale), None
    rows = []
    # Splits and concatenations, because their backward passes move every gradient once.
    one_by_one = zip(*(states.split(1) if len(states) > 1 else [states] for states in (query, key, value)), strict=True)
    for row, (lengths, (q_row, *k_and_v)) in enumerate(zip(documents, one_by_one, strict=True)):
        mask = attention_mask
        if mask is not None and mask.shape[0] > 1:
            mask = mask[row : row + 1]
        parts = [(0, before)] * len(lengths) if virtual is None else virtual[row]
        queries: Sequence[Tensor] = q_row.split(list(lengths), dim=2)
        pairs = [_with_virtual(states, before, lengths, parts) for states in k_and_v]
        shared = beginnings[row] if beginnings is not None else ()
        if any(shared):
            _check_shared(shared, parts, attention_mask)
            queries, *pairs = (_whole(pieces, shared) for pieces in (queries, *pairs))
        found, start = [], 0
        for q, k, v, (first, last) in zip(queries, *pairs, parts, strict=True):
            own = _mask_of(mask, before if virtual is None else 0, start, q)
            own = own if virtual is None or first == last else _behind(own, last - first, q)
            near = _near(q, last - first, options.get("sliding_window"))
            found.append(sdpa_attention_forward(module, q, k, v, _both(own, near), **options)[0])
            start += q.shape[2]
        if any(shared):
            found = [
                _parted(states, tokens, dim=1)[1] if tokens else states
                for states, tokens in zip(found, shared, strict=True)
            ]
        rows.append(found[0] if len(found) == 1 else recomputed(_joined, *found))
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), None


def widened_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """:func:`packed_attention` in float32 where gradients are taken, for half precision on a CPU.

    There torch's backward pass in bfloat16 takes longer than in float32, also on a CPU with matrix units for bfloat16.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return packed_attention(module, query, key, value, attention_mask, **options)
    given = (query, key, value, attention_mask)
    wide: Any = (x if x is None or x.dtype == torch.bool else x.float() for x in given)
    found, _ = packed_attention(module, *wide, **options)
    return recomputed(torch.Tensor.to, found, query.dtype), None


def _at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    beginnings: Documents | None,
    *,
    virtual: Sequence[Sequence[tuple[int, int]]] | None,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """:func:`packed_attention` of all documents in one call."""
    before = key.shape[2] - query.shape[2]
    lengths = tuple(map(tuple, documents))
    if [sum(row) for row in lengths] != [query.shape[2]] * query.shape[0]:  # the kernel would not look
        raise ValueError(f"documents of {lengths} tokens in {query.shape[0]} rows of {query.shape[2]}")
    shared = tuple((0,) * len(row) for row in lengths) if beginnings is None else tuple(map(tuple, beginnings))
    sees = tuple(((0, before),) * len(row) for row in lengths) if virtual is None else tuple(map(tuple, virtual))
    for pair in zip(shared, sees, strict=True):
        _check_shared(*pair, None)
    layout = packed_flash.layout_of(before, lengths, shared, sees, query.device)
    return packed_flash.attention(query, key, value, layout=layout, window=window, scale=scale)


def _window(window: int | None, before: int, documents: Documents, beginnings: Documents | None) -> int | None:
    """A sliding window, unless no document with what stands before it is longer."""
    if window is None:
        return None
    longest = before + max(map(max, documents)) + (0 if beginnings is None else max(map(max, beginnings)))
    return window if longest > window else None


def _joined(*documents: Tensor) -> Tensor:
    """Attention (1, T, H, d) of documents that follow one another; each holds its own for its backward pass."""
    return torch.cat(documents, dim=1)


def _with_virtual(
    states: Tensor, before: int, lengths: Sequence[int], virtual: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Of (1, H, P+T, d) keys or values those of each document, its virtual tokens before them."""
    pieces = states[:, :, before:].split(list(lengths), dim=2)
    return [
        torch.cat([states[:, :, first:last], piece], dim=2) if last > first else piece
        for piece, (first, last) in zip(pieces, virtual, strict=True)
    ]


def _check_shared(shared: Sequence[int], virtual: Sequence[tuple[int, int]], mask: Tensor | None) -> None:
    owner = 0
    for i, tokens in enumerate(shared):
        owner = owner if tokens else i
        if tokens and (mask is not None or any(first < last for first, last in (virtual[i], virtual[owner]))):
            raise ValueError("a shared beginning can have no virtual tokens before it, and no mask")


def _whole(pieces: Sequence[Tensor], shared: Sequence[int]) -> list[Tensor]:
    """Documents (1, H, T, d), each behind what it shares with the last that shares nothing; none a view of the row.

    For the backward pass attention keeps what it is given: a view would keep the whole row beside the copies.
    """
    found, owner, beginning = [], pieces[0], pieces[0]
    for piece, tokens in zip(pieces, shared, strict=True):
        if not tokens:
            owner = beginning = piece
        elif beginning.shape[2] != tokens:  # once for all who share it, whose gradients are then summed at its size
            beginning = _parted(owner, tokens, dim=2)[0]
        found.append(torch.cat([beginning, piece], dim=2) if tokens else piece.contiguous())
    return found


def _parted(states: Tensor, tokens: int, *, dim: int) -> Sequence[Tensor]:
    """The first tokens, and the others."""
    return states.split([tokens, states.shape[dim] - tokens], dim=dim)


def _behind(mask: Tensor | None, width: int, q: Tensor) -> Tensor:
    """A document's mask (1, 1, T, T), causal if None, behind ``width`` virtual tokens that all its tokens see."""
    tokens = q.shape[2]
    if mask is None:
        return torch.ones(tokens, width + tokens, dtype=torch.bool, device=q.device).tril(width)[None, None]
    return torch.nn.functional.pad(mask, (width, 0), value=float(mask.dtype == torch.bool))


def _mask_of(mask: Tensor | None, before: int, start: int, q: Tensor) -> Tensor | None:
    """The part of a (1, 1, T, P+T) mask that belongs to the document that starts at ``start``."""
    if mask is None:
        return None
    lines = mask[:, :, start : start + q.shape[2]]
    own = lines[..., before + start : before + start + q.shape[2]]
    return torch.cat([lines[..., :before], own], dim=-1) if before else own


def _near(q: Tensor, before: int, window: int | None) -> Tensor | None:
    """The mask of a sliding window, (1, 1, T, P+T), if the document is longer; virtual tokens are always near."""
    tokens = q.shape[2]
    if window is None or tokens <= window:
        return None
    near = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril().triu(1 - window)
    return torch.nn.functional.pad(near, (before, 0), value=True)[None, None]


def _both(mask: Tensor | None, near: Tensor | None) -> Tensor | None:
    if mask is None or near is None:
        return near if mask is None else mask
    return near & mask if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(WIDENED, widened_attention)


@contextmanager
def packing(decoder: Any, *, widened: bool = False) -> Iterator[None]:
    """Let ``decoder`` attend by documents; every forward pass inside needs the keyword ``documents``.

    Gradient checkpointing computes again in the backward pass, which therefore belongs inside as well.

    Args:
        decoder: of a model.
        widened: whether it attends in float32 while gradients are taken.
    """
    before = decoder.config._attn_implementation
    name = WIDENED if widened else PACKED
    decoder.config._attn_implementation = {"": name}  # of this configuration, and not of those inside it
    try:
        yield
    finally:
        decoder.config._attn_implementation = {"": before}
