"""The beginning that the examples of a micro-batch share – the template's words – goes through the model once.

Its tokens see nothing but themselves, so behind frozen weights and one adapter they are the same in every example, and
the gradient of all examples flows back through the one copy. Dropout is drawn for that copy: each example gets what it
could have drawn by itself, so the expected gradient, a sum over examples, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import IGNORED, Encoded

_WORTH = 32  # one token in so many must be saved: examples are put together again for attention, which costs a little


def shares_beginnings(settings: TrainSection, acting: Iterable[Adapter]) -> bool:
    """Whether a training through these adapters computes them once.

    Not where virtual tokens come before an example's own, and not where cached layers hold whole examples.
    """
    return not (settings.cache_frozen_layers or any(each.virtual_tokens for each in acting))


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
