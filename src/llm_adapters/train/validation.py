"""Validation while training: what decides which adapter is the best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters.data.encoding import Encoded
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.team import Team


@dataclass(frozen=True)
class Validation:
    """The mean loss over all labelled tokens of examples that are not trained on; smaller is better."""

    examples: Sequence[Encoded]

    @torch.no_grad()
    def measure(self, model: Any, batches: Batches, size: int, team: Team | None = None) -> dict[int, float]:
        """Measure the model as it is, without dropout and without drawing random numbers.

        Args:
            model: the model with the adapter attached; its mode is put back.
            batches: how examples go through it.
            size: rows that go through it at once.
            team: who shares the work; without it this process does all.

        Returns:
            The summed losses of this process's micro-batches, by their number; see :meth:`mean`.
        """
        rank, processes = (team.rank, team.size) if team else (0, 1)
        pieces = batches.pieces([len(example.input_ids) for example in self.examples], size)
        was_training = model.training
        model.eval()
        try:
            found = {}
            # Everybody does as many, also where a sharded base does not come otherwise; what is done twice is equal.
            for turn in range(math.ceil(len(pieces) / processes)):
                number = min(turn * processes + rank, len(pieces) - 1)
                with batches.in_force():
                    tensors = batches.tensors([self.examples[index] for index in pieces[number]])
                    found[number] = float(summed_loss(model, tensors))
            return found
        finally:
            model.train(was_training)

    def mean(self, parts: Sequence[dict[int, float]]) -> float:
        """The mean loss from what every process has measured, summed in the order of one process."""
        losses = {number: loss for part in parts for number, loss in part.items()}
        return sum(losses[number] for number in sorted(losses)) / sum(
            labelled_tokens(example.labels) for example in self.examples
        )
