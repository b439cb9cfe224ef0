"""Training several adapters on one frozen base at once: one base in memory, one forward pass for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import engine_of, route
from llm_adapters.adapters.streams import Stream
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import Stopped, TrainingError
from llm_adapters.train.batches import Batches
from llm_adapters.train.failure import FAILED, read_failure, write_failure
from llm_adapters.train.joint import Part, joint_gradients
from llm_adapters.train.loop import Loop
from llm_adapters.train.memory import shrinking
from llm_adapters.train.metrics import Metrics
from llm_adapters.train.randomness import RandomState, seed_all
from llm_adapters.train.stepper import NotFinite
from llm_adapters.train.stop import Stop
from llm_adapters.train.together import common_step, draws_of_its_own
from llm_adapters.train.training import TrainResult, prepare, result_of


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


Outcome = TrainResult | TrainingError | None
"""What came of a member; None if it ended in an earlier session."""


def train_cohort(
    model: nn.Module,
    members: Sequence[Member],
    *,
    pad_id: int,
    rows: int | None = None,
    stop: Stop | None = None,
    on_step: Callable[[int, Metrics], None] = lambda _member, _row: None,
    on_end: Callable[[int, TrainResult], None] = lambda _member, _result: None,
    on_note: Callable[[str], None] = lambda _text: None,
) -> list[Outcome]:
    """Train all members, each into its own folder, where it looks like a training by itself and could go on as one.

    A member's losses and gradients are those of its training alone, up to the rounding of larger matrix products. Its
    micro-batch is its share of ``rows``; with dropout it draws the numbers that it would draw alone with that
    micro-batch. A member whose loss or gradient is no number leaves, with ``failed.json`` in its folder; the others go
    on with the bits that they would have if it had ended there.

    Args:
        model: that all adapters are attached to.
        members: of any methods, sizes, recipes, seeds and data.
        pad_id: any valid token id.
        rows: that go through the model at once, of all members together; by default as many as the largest
            micro-batch that a member would have alone.
        stop: asked after every step whether to stop.
        on_step: told of a member, by its place, and its metrics after every step.
        on_end: told of a member and its result when its adapter is final, which another session is not told again
            unless ``ended`` is missing there.
        on_note: told what a user should know.

    Returns:
        What came of every member.

    Raises:
        DataError, OutputError, Stopped: as training alone.
        TrainingError: memory does not suffice for one row.
    """
    largest = max(member.settings.micro_batch or member.settings.batch_size for member in members)
    was_training = model.training
    seats: list[_Seat] = []
    try:
        cohort = _Cohort(model, seats, rows or largest, stop or Stop(), on_step, on_end, on_note)
        for index, member in enumerate(members):
            cohort.seat(index, member, pad_id, packed=all(each.settings.packing for each in members))
        if note := draws_of_its_own(model):
            on_note(note)
        model.train()
        cohort.run()
    finally:
        for seat in seats:
            seat.loop.stepper.close()
            seat.close()
        engine_of(model).streams = {}
        model.train(was_training)
    return [seat.outcome for seat in seats]


class _Seat:
    """A member's place, and its random numbers: in a cohort every member has its own."""

    def __init__(self, index: int, member: Member, loop: Loop) -> None:
        self.index, self.member, self.loop = index, member, loop
        self.name = member.adapter.name
        self.outcome: Outcome = None
        failure = read_failure(member.folder)
        self.failed = None if failure is None or member.ended is not None else failure
        self.ended = member.ended if self.failed is None else self.failed[0]
        self.begun = False
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

    def fail(self, failure: TrainingError, step: int) -> None:
        """Leave the cohort: the failure goes to disk at once, so that no other session waits for this member."""
        self.outcome = failure
        write_failure(self.member.folder, step, str(failure))

    def close(self) -> None:
        if self.begun:
            self.loop.log.close()


@dataclass
class _Cohort:
    """The members, and the order of what happens to them; see ``Loop`` for that of one."""

    model: nn.Module
    seats: list[_Seat]
    rows: int
    stop: Stop
    on_step: Callable[[int, Metrics], None]
    on_end: Callable[[int, TrainResult], None]
    note: Callable[[str], None]

    @property
    def batches(self) -> Batches:
        return self.seats[0].loop.stepper.batches

    def seat(self, index: int, member: Member, pad_id: int, *, packed: bool) -> None:
        """Prepare one member's training."""
        with route(self.model, None):  # whether the base can pack is tried without any adapter, and once
            loop = prepare(
                self.model, member.adapter, member.examples, member.settings, learning_rate=member.learning_rate,
                pad_id=pad_id, seed=member.seed, folder=member.folder, validation=member.validation,
                rows=member.rows, stop=self.stop, note=self.note, batches=self.batches if self.seats else None,
            )  # fmt: skip
        self.seats.append(_Seat(index, member, loop))
        self.batches.packed &= packed

    def run(self) -> None:
        start = common_step([(seat.loop.checkpoints, seat.ended) for seat in self.seats], self.note)
        active: list[_Seat] = []
        for seat in self.seats:
            if seat.ended is not None and seat.ended <= start:
                seat.outcome = None if seat.failed is None else TrainingError(seat.failed[1])
                continue
            position = seat.loop.state.position
            position.micro_batch = min(position.micro_batch, max(1, self.rows // len(self.seats)))
            seat.begin(start)
            self.rows = min(self.rows, seat.loop.state.position.joint_rows or self.rows)
            active.append(seat)
        engine_of(self.model).streams = {seat.name: seat.stream for seat in active}
        active = self._finish(active)
        with self.stop.deferred():
            while active:
                stayed = self._step(active)
                best = [seat.index for seat in stayed if self._validate(seat)]
                left = len(stayed) < len(active)
                active = [seat for seat in stayed if seat.outcome is None]
                ending = left or len(active) < len(stayed) or any(seat.loop.ended for seat in active)
                asked = self.stop.asked
                if best or ending or asked or any(seat.loop.due() for seat in active):
                    self._save(active)
                step = max((seat.loop.state.position.step for seat in active), default=0)
                active = self._finish(active)
                if asked:
                    raise Stopped(f"stopped after step {step} of the cohort")

    def _step(self, active: Sequence[_Seat]) -> list[_Seat]:
        """One step of every member; gives those that could take it."""
        batches = [seat.loop.batch() for seat in active]
        before = [seat.stream.state for seat in active]

        def attempt(rows: int) -> list[float | NotFinite]:
            for seat, batch, state in zip(active, batches, before, strict=True):
                seat.stream.state = state
                seat.loop.stepper.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(active[0].loop.state.position.step)  # of what the base itself may draw
            parts = [
                Part(seat.name, batch, seat.loop.state.position.micro_batch)
                for seat, batch in zip(active, batches, strict=True)
            ]
            return joint_gradients(self.model, self.batches, parts, rows)

        losses, rows = shrinking(attempt, self.rows, self.note)
        stayed = []
        for seat, batch, loss in zip(active, batches, losses, strict=True):
            stepper, position, rate = seat.loop.stepper, seat.loop.state.position, seat.loop.stepper.learning_rate
            if rows < self.rows:
                position.joint_rows, position.micro_batch = rows, min(position.micro_batch, rows)
            try:
                if isinstance(loss, NotFinite):
                    raise loss
                norm = stepper.update(batch)
            except (NotFinite, RuntimeError) as failure:
                told = seat.loop.explained(failure, rate)
                if told is None:
                    raise
                if isinstance(failure, RuntimeError):  # memory is everybody's
                    raise told from failure
                seat.fail(told, position.step + 1)
            else:
                self.on_step(seat.index, seat.loop.record(batch, loss, norm, rate))
                stayed.append(seat)
            finally:
                stepper.optimizer.zero_grad(set_to_none=True)
        self.rows = rows
        return stayed

    def _validate(self, seat: _Seat) -> bool:
        """Validate a member if it is time; whether it is the best so far."""
        try:
            with route(self.model, seat.name):
                best, self.rows = seat.loop.validate(self.rows)
        except TrainingError as failure:
            seat.fail(failure, seat.loop.state.position.step)
            return False
        return best

    def _save(self, active: Sequence[_Seat]) -> None:
        """Write checkpoints of all members, and only then remove old ones: one step that all have is always there."""
        for seat in active:
            seat.save()
        for seat in active:
            seat.loop.checkpoints.prune()

    def _finish(self, active: Sequence[_Seat]) -> list[_Seat]:
        """Let those leave that have ended, whose last checkpoint is written; gives the others."""
        for seat in [each for each in active if each.loop.ended]:
            seat.loop.take_best()
            seat.outcome = result_of(seat.loop)
            self.on_end(seat.index, seat.outcome)
        return [seat for seat in active if seat.outcome is None]
