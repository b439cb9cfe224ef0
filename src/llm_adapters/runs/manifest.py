"""The manifest of a run: what it takes to run it again and to notice that something has changed."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

import llm_adapters
from llm_adapters.data.digest import data_digest
from llm_adapters.model.memory import total_bytes

__all__ = ["code_digest", "data_digest", "environment", "forget_peak_memory", "peak_memory_bytes"]

_PACKAGES = ("llm-adapters", "torch", "transformers", "accelerate", "safetensors", "tokenizers")
_OPTIONAL = ("bitsandbytes", "torchao", "liger_kernel")  # where they are installed


def environment() -> dict[str, Any]:
    """Versions, hardware, and a digest of this package's code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = [*_PACKAGES, *filter(find_spec, _OPTIONAL)]
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": {
            "device": device,
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": total_bytes(),
            "system": platform.system(),
        },
        "code": code_digest(),
    }


@cache
def code_digest() -> str:
    """SHA-256 over the package's source files, as they were when this process began: those are the ones that run."""
    root = Path(llm_adapters.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def forget_peak_memory() -> None:
    """Let :func:`peak_memory_bytes` begin anew, so that one run in a process does not answer for those before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone knows how; elsewhere the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The highest memory in use since :func:`forget_peak_memory`: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


code_digest()
