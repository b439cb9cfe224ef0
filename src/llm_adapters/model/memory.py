"""Running out of memory, and how much there is."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import Tensor

_SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_CONTAINER = Path("/sys/fs/cgroup")


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether a failure is a lack of memory, on a GPU or of the CPU's allocator."""
    if isinstance(failure, torch.OutOfMemoryError):
        return True
    return isinstance(failure, RuntimeError) and any(sign in str(failure) for sign in _SIGNS)


def total_bytes() -> int:
    """All memory of the machine, or of the container that this process is in."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = (_CONTAINER / "memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def free_bytes(device: torch.device) -> int:
    """Memory that is free for this process: on a GPU, or of the machine or its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CONTAINER / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return min(free, int(limit) - int(used)) if limit.isdecimal() else free


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a copy from the CPU to a GPU waits for nothing that the GPU has to do before."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
