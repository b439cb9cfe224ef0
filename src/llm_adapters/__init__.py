"""Adapters for decoder language models: attach, train, evaluate, compare."""

from llm_adapters.adapters.attach import adapters, attach, detach, disable, enable, rename, route
from llm_adapters.adapters.merge import merge, unmerge
from llm_adapters.adapters.method import method, methods
# from llm_adapters.model import load_model

__all__ = [
    "adapters",
    "attach",
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
