"""Adapters for decoder language models: attach, train, evaluate, compare."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_adapters.adapters.attach import attach, attached, detach, disable, enable, rename, route
    from llm_adapters.adapters.merge import merge, unmerge
    from llm_adapters.adapters.method import method, methods
    from llm_adapters.model import load_model

__all__ = [
    "attach",
    "attached",
    "detach",
    "disable",
    "enable",
    "load_model",
    "merge",
    "method",
    "methods",
    "rename",
    "route",
    "unmerge",
]

_HOMES = {
    "adapters.attach": ("attach", "attached", "detach", "disable", "enable", "rename", "route"),
    "adapters.merge": ("merge", "unmerge"),
    "adapters.method": ("method", "methods"),
    "model": ("load_model",),
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: torch and transformers take seconds, ``--help`` should not."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"llm_adapters.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'llm_adapters' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
