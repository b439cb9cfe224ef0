"""Attention of a decoding step over blocks of rows that begin at like columns: what no row of a block sees is not read.

Reading keys and values is all that this attention costs, and in a cache that is aligned on the right a row that is
long makes every other row as long. So rows of like length stand together, and each block reads from its first column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
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

Block = tuple[slice, int]
"""Rows of the batch, and the first column that one of them sees."""


@dataclass
class _Step:
    """A step under way: its blocks, the columns of its cache, and the masks seen so far as each block takes them."""

    blocks: Sequence[Block]
    columns: int
    masks: list[tuple[Tensor, list[Tensor]]] = field(default_factory=list)

    def takes(self, query: Tensor, key: Tensor) -> bool:
        """Whether this is one token a row over the columns of the cache: no prefix before them, no window of them."""
        return query.shape[0] == self.blocks[-1][0].stop and query.shape[2] == 1 and key.shape[2] == self.columns

    def masks_of(self, mask: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The mask (B, 1, 1, T) of each block, to be added: all layers of a kind hand over the same one."""
        found = next((found for known, found in self.masks if known is mask), None)
        if found is None:
            if mask.dtype == torch.bool:
                # No -inf: a row that writes no more sees nothing in a window, of which some kernels make NaN.
                added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
            else:
                added = mask
            found = [added[rows, ..., first:] for rows, first in self.blocks]
            self.masks.append((mask, found))
        return found


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
def reading_by_blocks(model: Any, blocks: Sequence[Block], columns: int) -> Iterator[None]:
    """Let steps of ``model`` over a cache of so many columns, the new one included, read by blocks.

    Nothing changes without blocks, for a compiled model, and for one whose attention does not come through
    transformers' interface with ``sdpa``.
    """
    config = model.config.get_text_config(decoder=True)
    theirs = hasattr(model, "_orig_mod") or not model._supports_attention_backend
    if not blocks or theirs or config._attn_implementation != "sdpa":
        yield
        return
    token = _step.set(_Step(blocks, columns))
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
    if step is None or not step.takes(query, key) or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    masks = [None] * len(step.blocks) if attention_mask is None else step.masks_of(attention_mask, query.dtype)
    found = torch.empty_like(query)
    for (rows, first), mask in zip(step.blocks, masks, strict=True):
        found[rows] = functional.scaled_dot_product_attention(
            query[rows], key[rows, :, first:], value[rows, :, first:], mask, scale=options.get("scaling"),
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(BLOCKWISE, blockwise_attention)
AttentionMaskInterface.register(BLOCKWISE, sdpa_mask)
