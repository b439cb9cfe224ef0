"""Attention of a decoding step over blocks of rows that begin at like columns: what no row of a block sees is not read.

Reading keys and values is all that this attention costs, and in a cache that is aligned on the right a row that is
long makes every other row as long. So rows of like length stand together, and each block reads from its first column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BLOCKWISE = "llm_adapters_row_blocks"
"""Name of this attention in ``config._attn_implementation``, while :func:`reading_by_blocks` is in force."""

_WASTE = 192  # columns read in vain, over the rows of a block, that cost what one more call costs

Block = tuple[slice, int]
"""Rows of the batch, and the first column that one of them sees."""

_reading: tuple[Sequence[Block], int] | None = None


def blocks_of(firsts: Sequence[int]) -> list[Block]:
    """Blocks of neighbouring rows, given the first column that each row sees."""
    found: list[Block] = []
    begin, first, waste = 0, firsts[0] if firsts else 0, 0
    for row, own in enumerate(firsts):
        more = own - first if own >= first else (first - own) * (row - begin)
        if waste + more > _WASTE:
            found.append((slice(begin, row), first))
            begin, first, waste, more = row, own, 0, 0
        first, waste = min(first, own), waste + more
    return [*found, (slice(begin, len(firsts)), first)] if firsts else []


@contextmanager
def reading_by_blocks(model: Any, blocks: Sequence[Block], columns: int) -> Iterator[None]:
    """Let steps of ``model`` over a cache of so many columns, the new one included, read by blocks.

    Nothing changes for a model whose attention does not come through transformers' interface with ``sdpa``.
    """
    global _reading
    config = model.config.get_text_config(decoder=True)
    if len(blocks) < 2 or config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        yield
        return
    _reading, config._attn_implementation = (blocks, columns), BLOCKWISE
    try:
        yield
    finally:
        _reading, config._attn_implementation = None, "sdpa"


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
    assert _reading is not None
    blocks, columns = _reading
    step = query.shape[0] == blocks[-1][0].stop and query.shape[2] == 1
    if not step or attention_mask is None or key.shape[2] != columns:  # a prefix before them, a window of them
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    found = []
    for rows, first in blocks:
        k, v, mask = key[rows, :, first:], value[rows, :, first:], attention_mask[rows, ..., first:]
        found.append(sdpa_attention_forward(module, query[rows], k, v, mask, **options)[0])
    return torch.cat(found), None


AttentionInterface.register(BLOCKWISE, blockwise_attention)
AttentionMaskInterface.register(BLOCKWISE, sdpa_mask)
