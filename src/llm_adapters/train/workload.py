"""What a training will put through the model: its real micro-batches, in their real order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.train.batches import Batches, balanced
from llm_adapters.train.beginnings import shared_beginning
from llm_adapters.train.loss import labelled_tokens
from llm_adapters.train.order import Order, total_steps


@dataclass(frozen=True)
class Extent:
    """How large one micro-batch is, padding included.

    Attributes:
        tokens: that go through the linear maps.
        squares: tokens squared, over its sequences: what attention takes.
        logits: rows of logits.
    """

    tokens: int
    squares: int
    logits: int

    @classmethod
    def of(cls, piece: Sequence[Encoded], *, packed: bool, sharing: bool = False) -> Extent:
        """The extent of some examples in one micro-batch; see :class:`Batches` for how they stand in it."""
        lengths = [len(example.input_ids) for example in piece]
        if packed:
            labels = sum(labelled_tokens(example.labels) for example in piece)
            again = shared_beginning(piece) * (len(piece) - 1) if sharing else 0
            return cls(sum(lengths) - again, sum(n * n for n in lengths), labels)
        width = max(lengths)
        columns = {i for example in piece for i, label in enumerate(example.labels) if i and label != IGNORED}
        return cls(len(piece) * width, len(piece) * width**2, len(piece) * len(columns))


@dataclass(frozen=True)
class Workload:
    """All micro-batches of a training, in several processes those of the busiest in each step.

    Attributes:
        steps: optimiser steps.
        tokens: tokens read, by all processes, padding not counted.
        pieces: every micro-batch of every step.
        accumulating: whether a step has more than one.
    """

    steps: int
    tokens: int
    pieces: list[list[Encoded]]
    accumulating: bool

    @classmethod
    def of(
        cls,
        examples: Sequence[Encoded],
        settings: TrainSection,
        batches: Batches,
        *,
        seed: int,
        size: int,
        processes: int = 1,
    ) -> Workload:
        """The micro-batches of at most ``size`` rows that training on ``examples`` will make."""
        steps = total_steps(len(examples), settings)
        order = Order([len(example.input_ids) for example in examples], settings.batch_size, seed)
        pieces: list[list[Encoded]] = []
        most = tokens = 0
        for step in range(steps):
            batch = [examples[index] for index in order.batch(step)]
            lengths = [len(example.input_ids) for example in batch]
            tokens += sum(lengths)
            shares = balanced(lengths, processes, math.ceil(len(batch) / processes))
            busiest = max(shares, key=lambda share: sum(lengths[index] for index in share))
            indices = batches.pieces([lengths[index] for index in busiest], size)
            pieces += [[batch[busiest[index]] for index in piece] for piece in indices]
            most = max(most, len(indices))
        return cls(steps, tokens, pieces, most > 1)

    def extents(self, batches: Batches) -> list[Extent]:
        """The extent of every micro-batch."""
        return [Extent.of(piece, packed=batches.packed, sharing=batches.sharing) for piece in self.pieces]
