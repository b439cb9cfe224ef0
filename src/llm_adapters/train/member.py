"""One training of a cohort: what it is given, and its place among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.streams import Stream
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import TrainingError
from llm_adapters.train.beginnings import shares_beginnings
from llm_adapters.train.failure import FAILED, read_failure, write_failure
from llm_adapters.train.loop import Loop
from llm_adapters.train.randomness import RandomState, seed_all
from llm_adapters.train.training import TrainResult


@dataclass(frozen=True)
class Member:
    """One training of a cohort: what :func:`~llm_adapters.train.training.train` takes.

    Attributes:
        adapter: attached and freshly initialised, the same way every time.
        ended: the steps after which an earlier session saw it end, if one did; its result is kept elsewhere.
    """

    adapter: Adapter
    examples: Sequence[Encoded]
    settings: TrainSection
    learning_rate: float
    seed: int
    folder: Path
    validation: Sequence[Encoded] = ()
    rows: Sequence[int] | None = None
    ended: int | None = None
    validation_rows: Sequence[int] | None = None


Outcome = TrainResult | TrainingError | None
"""What came of a member; None if it ended in an earlier session."""


class Seat:
    """A member's place, and its random numbers: in a cohort every member has its own."""

    def __init__(self, index: int, member: Member, loop: Loop) -> None:
        self.index, self.member, self.loop = index, member, loop
        self.name = member.adapter.name
        self.outcome: Outcome = None
        failure = read_failure(member.folder)
        self.failed = None if failure is None or member.ended is not None else failure
        self.ended = member.ended if self.failed is None else self.failed[0]
        self.begun = False
        self.shares = shares_beginnings(member.settings, [member.adapter])
        seed_all(member.seed)
        self._take_random()

    def _take_random(self) -> None:
        self.random = RandomState.take(self.member.adapter.base.device)
        self.stream = Stream(self.random.tensors)

    def begin(self, step: int) -> None:
        """Go on from the checkpoint of ``step``, or begin with 0."""
        (self.member.folder / FAILED).unlink(missing_ok=True)
        self.loop.begin(self.member.folder / "metrics.jsonl", self.loop.checkpoints.back_to(step))
        self.begun = True
        if step:
            self._take_random()

    def save(self) -> None:
        """Write a checkpoint, as the training alone would."""
        RandomState(self.random.plain, self.stream.state).restore()
        self.loop.save(prune=False)

    def keep(self, random: Any) -> None:
        """Write a checkpoint of the steps that were taken, with the random numbers before the one that was not."""
        self.stream.state = random
        RandomState(self.random.plain, random).restore()
        self.loop.keep(prune=False)

    def fail(self, failure: TrainingError, step: int) -> None:
        """Leave the cohort: the failure goes to disk at once, so that no other session waits for this member."""
        self.outcome = failure
        write_failure(self.member.folder, step, str(failure))

    def close(self) -> None:
        if self.begun:
            self.loop.log.close()
            self.loop.trackers.finish()
