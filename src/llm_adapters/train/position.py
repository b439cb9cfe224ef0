"""How far a training is: what is counted, and the best so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Position:
    """Everything of a training that is a plain number.

    Attributes:
        step: optimiser steps done; it is the position in the data too, for the order follows from the seed.
        tokens: tokens read, padding not counted.
        seconds: wall time of the loop, over all sessions.
        micro_batch: rows that go through the model at once, as memory has allowed.
        joint_rows: of a member of a cohort, rows of all members that do, if memory has not allowed what was asked.
        best_step, best_loss, best_accuracy: the best validation so far; no accuracy where none is measured.
        since_best: validations since then.
        unvalidated: whether a validation is due at this step.
        resumed: the steps at which an interrupted training was gone on with.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro_batch: int = 1
    joint_rows: int | None = None
    best_step: int | None = None
    best_loss: float | None = None
    best_accuracy: float | None = None
    since_best: int = 0
    unvalidated: bool = False
    resumed: list[int] = field(default_factory=list)

    def judge(self, loss: float, accuracy: float | None = None) -> bool:
        """Take note of a validation; whether it is the best so far.

        The larger accuracy is better, and of equal ones the one with the smaller loss; without accuracy the smaller
        loss is.
        """
        now = (-(accuracy or 0.0), loss)
        if self.best_loss is not None and now >= (-(self.best_accuracy or 0.0), self.best_loss):
            self.since_best += 1
            return False
        self.best_step, self.best_loss, self.best_accuracy, self.since_best = self.step, loss, accuracy, 0
        return True

    def forget_best(self) -> None:
        """Look for the best anew: what it was is lost."""
        self.best_step = self.best_loss = self.best_accuracy = None
        self.since_best = 0

    def exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` validations in a row brought nothing better."""
        return patience is not None and self.since_best >= patience
