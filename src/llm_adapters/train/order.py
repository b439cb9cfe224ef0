"""Which examples a step takes: it follows from the seed and the step alone, so any step can be gone on from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_adapters.config.schema import TrainSection
from llm_adapters.data.collate import length_sorted_batches


class Order:
    """Batches of similar length, epoch after epoch.

    Args:
        lengths: tokens of each example.
        batch_size: the last batch of an epoch may be smaller.
        seed: of the shuffles.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self._epoch, self._batches = -1, [[0]]

    def batch(self, step: int) -> list[int]:
        """The indices of the examples that ``step`` (from 0) takes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = length_sorted_batches(self.lengths, self.batch_size, self.seed, epoch)
        return self._batches[place]


def total_steps(examples: int, settings: TrainSection) -> int:
    """Optimiser steps that ``settings`` make of so many examples."""
    planned = math.ceil(settings.epochs * math.ceil(examples / settings.batch_size))
    return planned if settings.steps is None else min(planned, settings.steps)
