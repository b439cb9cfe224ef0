"""Validation while training: what decides which adapter is the best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.team import Team


class BrokenOff(Exception):  # noqa: N818 – no mistake of anybody's
    """A validation that was not finished, because somebody asked for the training to stop; it left nothing."""


class Measured(NamedTuple):
    """One micro-batch: its number, its summed loss, and the rows in it."""

    number: int
    loss: float
    rows: list[int]


@dataclass(frozen=True)
class Validation:
    """The mean loss over all labelled tokens of examples that are not trained on; smaller is better."""

    examples: Sequence[Numbered]

    @torch.no_grad()
    def measure(
        self, model: Any, batches: Batches, size: int, team: Team | None = None, *,
        asked: Callable[[], bool] = lambda: False,
    ) -> list[Measured]:  # fmt: skip
        """Measure the model as it is, without dropout and without drawing random numbers.

        Args:
            model: the model with the adapter attached; its mode is put back.
            batches: how examples go through it.
            size: rows that go through it at once.
            team: who shares the work; without it this process does all.
            asked: whether to stop, looked at before every micro-batch; for one process alone.

        Returns:
            What this process's micro-batches gave; see :meth:`mean`.

        Raises:
            BrokenOff: it was asked to.
        """
        rank, processes = (team.rank, team.size) if team else (0, 1)
        pieces = batches.pieces([len(row.example.input_ids) for row in self.examples], size)
        was_training = model.training
        model.eval()
        try:
            found = []
            # Everybody does as many, also where a sharded base does not come otherwise; what is done twice is equal.
            for turn in range(math.ceil(len(pieces) / processes)):
                if asked():
                    raise BrokenOff
                number = min(turn * processes + rank, len(pieces) - 1)
                rows = [self.examples[index] for index in pieces[number]]
                with batches.in_force():
                    loss = summed_loss(model, batches.tensors([row.example for row in rows]), batches.head)
                found.append(Measured(number, float(loss), [row.row for row in rows]))
            return found
        finally:
            model.train(was_training)

    def mean(self, parts: Sequence[Sequence[Measured]]) -> float:
        """The mean loss from what every process has measured, summed in the order of one process."""
        total = sum(each.loss for each in _in_order(parts))
        return total / sum(labelled_tokens(row.example.labels) for row in self.examples)

    @staticmethod
    def suspects(parts: Sequence[Sequence[Measured]]) -> list[int]:
        """The rows whose loss is no number."""
        return sorted(row for each in _in_order(parts) if not math.isfinite(each.loss) for row in each.rows)


def _in_order(parts: Sequence[Sequence[Measured]]) -> Iterator[Measured]:
    """Every micro-batch once, whichever process measured it."""
    found = {each.number: each for part in parts for each in part}
    return (found[number] for number in sorted(found))
