"""The beginning that the examples of a micro-batch share – the template's words – goes through the model once.

Its tokens see nothing but themselves, so behind frozen weights and one adapter they are the same in every example, and
the gradient of all examples flows back through the one copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attached
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.model.drawing import draws

_WORTH = 32  # one token in so many must be saved: examples are put together again for attention, which costs a little


def shares_beginnings(model: nn.Module, settings: TrainSection, adapter: Adapter | None = None) -> bool:
    """Whether a training of one adapter computes them once; ``model`` with what is attached, or of that one adapter.

    Not where examples differ there – something draws, or virtual tokens come before their own –, and not where compiled
    layers would be compiled anew for another beginning, or cached ones hold whole examples.
    """
    if settings.compile or settings.cache_frozen_layers:
        return False
    there = list(attached(model).values())
    acting = there if adapter is None else [adapter]
    idle = {module for other in there if other not in acting for module in other.modules()}
    before = any(each.virtual_tokens for each in acting)
    return not before and not any(draws(module) for module in model.modules() if module not in idle)


def shared_beginning(examples: Sequence[Encoded]) -> int:
    """How many first tokens to compute once: all examples have them, and nothing is predicted from them.

    0 where that saves too little. Every example keeps a token of its own.
    """
    rows = [example.input_ids for example in examples]
    shared = min(min(len(example.input_ids), _first_label(example)) for example in examples) - 1
    least, most = min(rows), max(rows)  # what these two share, all do
    shared = next((i for i in range(shared) if least[i] != most[i]), shared)
    saved = max(0, shared) * (len(rows) - 1)
    return shared if saved * _WORTH >= sum(map(len, rows)) else 0


def _first_label(example: Encoded) -> int:
    """The position of the first label that is predicted, or what comes behind all."""
    return next((i for i, label in enumerate(example.labels) if i and label != IGNORED), len(example.labels))
