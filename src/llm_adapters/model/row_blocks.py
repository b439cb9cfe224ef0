"""Attention of a decoding step that reads of the cache what it must: by blocks of rows, and what rows share once.

Reading keys and values is all that this attention costs, and in a cache that is aligned on the right a row that is
long makes every other row as long. So rows of like length stand together, and each block reads from its first column.
Where many rows begin with the same tokens – a template, worked examples – all queries go to one copy of their keys and
values, and the two parts of the softmax are put together by their sums (as in flash decoding and cascade attention).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BLOCKWISE = "llm_adapters_row_blocks"
"""Name of this attention in ``config._attn_implementation``, while :func:`reading_by_blocks` is in force."""

_CALL = 300_000  # bytes read in vain, over the rows of a block, that cost what one more call costs
_BEYOND = (
    "position_bias",
    "softcap",
    "s_aux",
    "indices",
    "block_indices",
)  # what an attention may be given, not this one
_WORTH = 32  # calls that reading a shared beginning apart costs, and putting the parts together

Block = tuple[slice, int]
"""Rows of the batch, and the first column that one of them sees."""


@dataclass(frozen=True)
class Shared:
    """Neighbouring rows that begin with the same tokens, whose keys and values are equal bit for bit."""

    rows: slice
    tokens: int


@dataclass(frozen=True)
class Reading:
    """What a step reads.

    Attributes:
        blocks: all rows, from the first columns that they see.
        shared: rows that share a beginning.
        behind: all rows, from what comes behind those beginnings.
        hidden: (B, T) which columns those beginnings stand in; None without any.
        firsts: the first column that each row sees.
    """

    blocks: Sequence[Block]
    shared: Sequence[Shared] = ()
    behind: Sequence[Block] = ()
    hidden: Tensor | None = None
    firsts: Sequence[int] = ()

    @classmethod
    def of(cls, firsts: Sequence[int], beginnings: Sequence[tuple[object, int]], bytes_a_column: int) -> Reading:
        """How to read rows that see these first columns and begin with so many tokens of a key.

        Args:
            firsts: the first column that each row sees.
            beginnings: for each row, what it begins with, as any key, and how many tokens that is; 0 for nothing.
            bytes_a_column: of the keys and values of one row in one layer.
        """
        blocks = blocks_of(firsts, bytes_a_column)
        shared, row = [], 0
        for (_, tokens), same in groupby(beginnings):
            rows = slice(row, row := row + len(list(same)))
            if tokens * (rows.stop - rows.start - 1) * bytes_a_column > _WORTH * _CALL:
                shared.append(Shared(rows, tokens))
        if not shared:
            return cls(blocks)
        begin, lengths = torch.tensor(firsts), torch.zeros(len(firsts), dtype=torch.long)
        for each in shared:
            lengths[each.rows] = each.tokens
        columns = torch.arange(int((begin + lengths).max()))
        hidden = (columns >= begin[:, None]) & (columns < (begin + lengths)[:, None])
        return cls(blocks, shared, blocks_of((begin + lengths).tolist(), bytes_a_column), hidden, firsts)


@dataclass
class _Step:
    """A step under way: what it reads of so many columns, and the masks seen so far as blocks take them."""

    reading: Reading
    columns: int
    masks: list[tuple[Tensor | None, list[Tensor | None], bool]] = field(default_factory=list)

    def takes(self, query: Tensor, key: Tensor) -> bool:
        """Whether this is one token a row over the columns of the cache: no prefix before them, no window of them."""
        rows = self.reading.blocks[-1][0].stop
        return query.shape[0] == rows and query.shape[2] == 1 and key.shape[2] == self.columns

    def masks_of(self, mask: Tensor | None, dtype: torch.dtype) -> tuple[list[Tensor | None], bool]:
        """The mask of each block, to be added, and whether blocks leave shared beginnings out.

        All layers of a kind hand over the same mask (B, 1, 1, T), or None if all rows see all columns.
        """
        for known, found, apart in self.masks:
            if known is mask:
                return found, apart
        hidden = self.reading.hidden
        if hidden is not None:
            hidden = functional.pad(hidden, (0, self.columns - hidden.shape[1]))[:, None, None]
        apart = hidden is not None and (mask is None or _sees_all(mask, hidden))
        own = mask
        if apart and hidden is not None:
            own = ~hidden if mask is None else mask & ~hidden if mask.dtype == torch.bool else _without(mask, hidden)
        if own is not None and own.dtype == torch.bool:
            own = _without(torch.zeros_like(own, dtype=dtype), ~own)
        blocks = self.reading.behind if apart else self.reading.blocks
        found = [None if own is None else own[rows, ..., first:] for rows, first in blocks]
        self.masks.append((mask, found, apart))
        return found, apart


def _without(mask: Tensor, columns: Tensor) -> Tensor:
    """A mask that is added, some columns hidden.

    Not by -inf: a row that writes no more sees nothing in a window, of which some kernels make NaN.
    """
    return mask.masked_fill(columns, torch.finfo(mask.dtype).min)


def _sees_all(mask: Tensor, hidden: Tensor) -> bool:
    """Whether rows see all of these columns, with nothing added: no window ends before them, no slope weighs them."""
    plain = mask if mask.dtype == torch.bool else mask == 0
    return mask.shape[1] == 1 and bool((plain | ~hidden).all())


_step: ContextVar[_Step | None] = ContextVar("_step", default=None)


def blocks_of(firsts: Sequence[int], bytes_a_column: int) -> list[Block]:
    """Blocks of neighbouring rows, given the first column that each row sees.

    Args:
        firsts: first column of each row.
        bytes_a_column: of the keys and values of one row in one layer.
    """
    found: list[Block] = []
    most = _CALL // max(1, bytes_a_column)
    begin, first, waste = 0, firsts[0] if firsts else 0, 0
    for row, own in enumerate(firsts):
        more = own - first if own >= first else (first - own) * (row - begin)
        if waste + more > most:
            found.append((slice(begin, row), first))
            begin, first, waste, more = row, own, 0, 0
        first, waste = min(first, own), waste + more
    return [*found, (slice(begin, len(firsts)), first)] if firsts else []


@contextmanager
def reading_by_blocks(model: Any, reading: Reading | None, columns: int) -> Iterator[None]:
    """Let steps of ``model`` over a cache of so many columns, the new one included, read by blocks.

    Nothing changes without a ``reading``, for a compiled model, and for one whose attention does not come through
    transformers' interface with ``sdpa``.
    """
    config = model.config.get_text_config(decoder=True)
    theirs = hasattr(model, "_orig_mod") or not model._supports_attention_backend
    if not reading or not reading.blocks or theirs or config._attn_implementation != "sdpa":
        yield
        return
    token = _step.set(_Step(reading, columns))
    config._attn_implementation = {"": BLOCKWISE}  # of this configuration, and not of those inside it
    try:
        yield
    finally:
        config._attn_implementation = {"": "sdpa"}
        _step.reset(token)


def blockwise_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of one new token a row.

    Args:
        module: the model's attention layer.
        query: (B, H, 1, d).
        key, value: (B, H_kv, T, d).
        attention_mask: (B, 1, 1, T), or None if all rows see all columns.
        options: what the layer hands to any attention.

    Returns:
        (B, 1, H, d), and no weights.
    """
    step = _step.get()
    beyond = options.get("dropout") or any(options.get(name) is not None for name in _BEYOND)
    if step is None or query.device.type != "cpu" or beyond or not step.takes(query, key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    masks, apart = step.masks_of(attention_mask, query.dtype)
    scale = options.get("scaling")
    if apart and value.shape[-1] != query.shape[-1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if apart:
        return _apart(step.reading, masks, (query, key, value), scale), None
    found = query.new_empty(*query.shape[:3], value.shape[-1])
    for (rows, first), mask in zip(step.reading.blocks, masks, strict=True):
        found[rows] = functional.scaled_dot_product_attention(
            query[rows], key[rows, :, first:], value[rows, :, first:], mask, scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
    return found.transpose(1, 2).contiguous(), None


def _apart(
    reading: Reading, masks: Sequence[Tensor | None], given: tuple[Tensor, Tensor, Tensor], scale: float | None
) -> Tensor:
    """Attention (B, 1, H, d) to what each row has of its own, and to what rows share."""
    query, key, value = given
    rows, heads, _, width = query.shape
    q = query.reshape(rows, key.shape[1], -1, width)  # the queries of a group of heads as one sequence
    found, sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for (at, first), mask in zip(reading.behind, masks, strict=True):
        found[at], sums[at] = _attention(q[at], key[at, :, first:], value[at, :, first:], mask, scale)
    for shared in reading.shared:
        at, begin = shared.rows, reading.firsts[shared.rows.start]
        columns = slice(begin, begin + shared.tokens)
        asked = q[at].transpose(0, 1).flatten(1, 2)[None]  # (1, H_kv, rows · group, d)
        k, v = (states[None, at.start, :, columns] for states in (key, value))
        part, its_sums = _attention(asked, k, v, None, scale)
        mine = q[at].transpose(0, 1).shape
        weight = torch.sigmoid(its_sums.view(mine[:3]).transpose(0, 1) - sums[at])
        found[at] = found[at].lerp(part.view(mine).transpose(0, 1), weight[..., None].to(q.dtype))
    return found.view(rows, 1, heads, width)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """What the processor's attention gives, and the logarithm of the sum under its softmax (B, H, T)."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return found


AttentionInterface.register(BLOCKWISE, blockwise_attention)
AttentionMaskInterface.register(BLOCKWISE, sdpa_mask)
