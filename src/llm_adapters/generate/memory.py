"""How many rows fit: from the memory that is free, and from what a row was seen to take."""

from __future__ import annotations

import psutil
import torch

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
    return max(1, min(MOST_ROWS, int(_SHARE * _free(device) / row)))


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the CPU."""
    return isinstance(failure, torch.OutOfMemoryError) or (
        isinstance(failure, RuntimeError) and "can't allocate memory" in str(failure)
    )


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)
