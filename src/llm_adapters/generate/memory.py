"""How many rows fit: from the memory that is free, and from what a row was seen to take."""

from __future__ import annotations

import torch

from llm_adapters.model.memory import free_bytes

MOST_ROWS = 256
"""More rows hardly raise the speed of matrix products, on two cores or on a GPU."""
_SHARE = 0.5  # of the free memory: others want some, and so does the pass itself
_COPIES = 2  # while a cache grows, the old and the new one are there together


def rows_that_fit(bytes_a_token: float, columns: int, vocabulary: int, device: torch.device) -> int:
    """Rows of a decoding batch, 1 to ``MOST_ROWS``.

    Args:
        bytes_a_token: of keys and values, over all layers.
        columns: of the cache when it is longest.
        vocabulary: columns of the logits, which are held in float32 a few times over.
        device: whose memory counts.
    """
    row = _COPIES * bytes_a_token * columns + 3 * 4 * vocabulary
    return max(1, min(MOST_ROWS, int(_SHARE * free_bytes(device) / row)))
