"""Where things are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of what can be made again: ``$LLM_ADAPTERS_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("LLM_ADAPTERS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llm-adapters"
