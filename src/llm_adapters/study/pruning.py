"""Ending a run early when it is not among the best at the same step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_adapters.runs.run import Observer
from llm_adapters.train import Stop

SHARES = (1 / 9, 1 / 3)
"""Of the steps, after which runs are compared: successive halving by thirds."""


class Early(Stop):
    """Stops when ``ended`` is set, or when the user's own ``Stop`` was asked.

    Attributes:
        ended: step and loss at which the run was not good enough.
    """

    def __init__(self, outer: Stop | None) -> None:
        self.outer = outer or Stop()
        self.ended: tuple[int, float] | None = None

    @property
    def asked(self) -> bool:  # type: ignore[override]
        """Whether anybody has asked."""
        return self.ended is not None or self.outer.asked

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """As the user's own."""
        with self.outer.deferred():
            yield


class Rungs:
    """Watches a run for another observer, and lets ``judge`` look at it at some of its steps.

    Args:
        observer: told everything.
        folder: of the run.
        judge: given a step and the loss there, whether to end the run.
        stop: by which it ends.
    """

    def __init__(self, observer: Observer, folder: Path, judge: Callable[[int, float], bool], stop: Early) -> None:
        self.observer, self.folder, self.judge, self.stop = observer, folder, judge, stop
        self.left: list[int] = []
        self.step = 0

    def begin(self, what: str, total: int | None) -> None:
        """Training begins, or something else."""
        training = what.startswith("training") and total
        self.left, self.step = (rungs(total) if training and total else []), 0
        self.observer.begin(what, total)

    def advance(self, amount: int, note: str = "") -> None:
        """It has come on; maybe to a rung."""
        self.step += amount
        self.observer.advance(amount, note)
        while self.left and self.step >= self.left[0]:
            rung = self.left.pop(0)
            loss = loss_at(self.folder, rung)
            if loss is not None and self.judge(rung, loss):
                self.stop.ended = rung, loss

    def end(self, result: str) -> None:
        """What began is done."""
        self.observer.end(result)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.observer.note(text)


def is_among_the_best(loss: float, others: Sequence[float]) -> bool:
    """Whether a loss is in the best third of all at the same step; always, before three can be compared."""
    return len(others) < 2 or sum(other < loss for other in others) < math.ceil((len(others) + 1) / 3)


def rungs(steps: int) -> list[int]:
    """The steps at which a run of so many is judged."""
    return sorted({max(1, round(share * steps)) for share in SHARES} - {steps})


def loss_at(folder: Path, step: int) -> float | None:
    """The mean training loss of the fifth of the steps before ``step``; None if the run did not come so far."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row and row["step"] <= step]
    if len(losses) < step:
        return None
    last = losses[-max(1, step // 5) :]
    return float(sum(last) / len(last))
