"""The manifest of a run: what it takes to run it again and to notice that something has changed."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

import llm_adapters
from llm_adapters.data.digest import data_digest

__all__ = ["code_digest", "data_digest", "environment", "peak_memory_bytes"]

_PACKAGES = ("llm-adapters", "torch", "transformers", "accelerate", "safetensors", "tokenizers")
_QUANTISING = ("bitsandbytes", "torchao")  # where they are installed


def environment() -> dict[str, Any]:
    """Versions, hardware, and a digest of this package's code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = [*_PACKAGES, *filter(find_spec, _QUANTISING)]
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": {
            "device": device,
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.system(),
        },
        "code": code_digest(),
    }


def code_digest() -> str:
    """SHA-256 over the package's source files."""
    root = Path(llm_adapters.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def peak_memory_bytes() -> int:
    """The highest memory in use so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
