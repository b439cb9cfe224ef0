"""Training several adapters on one frozen base at once: one base in memory, one forward pass for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llm_adapters.adapters.attach import engine_of, route
from llm_adapters.errors import Stopped, TrainingError
from llm_adapters.train.batches import Batches
from llm_adapters.train.joint import Part, joint_gradients
from llm_adapters.train.member import Member, Outcome, Seat
from llm_adapters.train.memory import OutOfMemoryError, shrinking
from llm_adapters.train.metrics import Metrics
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.options import ALONE
from llm_adapters.train.stepper import NotFinite
from llm_adapters.train.stop import Stop
from llm_adapters.train.team import Team
from llm_adapters.train.together import common_step, draws_of_its_own
from llm_adapters.train.training import TrainResult, prepare, result_of
from llm_adapters.train.validation import BrokenOff


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
    micro-batch is that of its training alone, if that is no more than ``rows``; then it draws the same dropout too. A
    member whose loss or gradient is no number leaves, with ``failed.json`` in its folder; the others go on with the
    bits that they would have if it had ended there.

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
        TrainingError: memory does not suffice for one row, or this is one of several processes.
    """
    team = Team.alone("a cohort")
    for option in ALONE:
        if any(getattr(member.settings, option) for member in members):
            raise TrainingError(f"a cohort does not have train.{option}", mend=f"train.{option}=false")
    largest = max(member.settings.micro_batch or member.settings.batch_size for member in members)
    was_training = model.training
    seats: list[Seat] = []
    try:
        cohort = _Cohort(model, seats, rows or largest, stop or Stop(), on_step, on_end, on_note, team)
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


@dataclass
class _Cohort:
    """The members, and the order of what happens to them; see ``Loop`` for that of one.

    Attributes:
        seats: of all members.
        active: of them those that train.
        rows: that go through the model at once, as memory has allowed.
    """

    model: nn.Module
    seats: list[Seat]
    rows: int
    stop: Stop
    on_step: Callable[[int, Metrics], None]
    on_end: Callable[[int, TrainResult], None]
    note: Callable[[str], None]
    team: Team
    active: list[Seat] = field(default_factory=list)

    @property
    def batches(self) -> Batches:
        """How examples go through the model, for all members."""
        return self.seats[0].loop.stepper.batches

    def seat(self, index: int, member: Member, pad_id: int, *, packed: bool) -> None:
        """Prepare one member's training."""
        with route(self.model, None):  # whether the base can pack is tried without any adapter, and once
            loop = prepare(
                self.model, member.adapter, member.examples, member.settings, learning_rate=member.learning_rate,
                pad_id=pad_id, seed=member.seed, folder=member.folder, validation=member.validation,
                rows=member.rows, validation_rows=member.validation_rows, stop=self.stop, note=self.note,
                team=self.team, batches=self.batches if self.seats else None,
            )  # fmt: skip
        self.seats.append(Seat(index, member, loop))
        loop.stepper.open()
        self.batches.packed &= packed

    def run(self) -> None:
        """Train to the end, from the last step that all have a checkpoint of."""
        self._begin(common_step([(seat.loop.checkpoints, seat.ended) for seat in self.seats], self.note))
        self._finish()
        with self.stop.deferred():
            while self.active:
                before = len(self.active)
                if not any(seat.loop.state.position.unvalidated for seat in self.active):
                    self._step()
                step = self.active[0].loop.state.position.step if self.active else 0
                try:
                    best = [seat.index for seat in self.active if self._validate(seat)]
                except BrokenOff:  # those who have validated need not again
                    self.active = [seat for seat in self.active if seat.outcome is None]
                    self._save()
                    raise Stopped(f"stopped after step {step} of the cohort") from None
                self.active = [seat for seat in self.active if seat.outcome is None]
                ending = sum(seat.loop.ended for seat in self.active) + before - len(self.active)
                # Whoever stays must not have to go on from before the others left.
                parting = 0 < ending < before
                asked = self.stop.asked  # once: a signal may come between two looks
                if best or parting or asked or any(seat.loop.due() for seat in self.active):
                    self._save()
                self._finish()
                if asked:
                    raise Stopped(f"stopped after step {step} of the cohort")

    def _begin(self, step: int) -> None:
        """Let all members go on from ``step``, but for those that had ended by then."""
        for seat in self.seats:
            if seat.ended is not None and seat.ended <= step:
                seat.outcome = None if seat.failed is None else TrainingError(seat.failed[1])
                seat.loop.checkpoints.prune()  # a kill may have come before
                continue
            position = seat.loop.state.position
            position.micro_batch = min(position.micro_batch, self.rows)
            seat.begin(step)
            self.active.append(seat)
        self.rows = min([self.rows, *(seat.loop.state.position.joint_rows or self.rows for seat in self.active)])
        engine_of(self.model).streams = {seat.name: seat.stream for seat in self.active}

    def _step(self) -> None:
        """One step of every member; those that cannot take it leave."""
        batches = [seat.loop.batch() for seat in self.active]
        before = [seat.stream.state for seat in self.active]

        def attempt(rows: int) -> list[float | NotFinite]:
            for seat, state in zip(self.active, before, strict=True):
                seat.stream.state = state
                seat.loop.stepper.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(self.active[0].loop.state.position.step)  # of what the base itself may draw
            parts = [
                Part(seat.name, batch, seat.loop.state.position.micro_batch, seat.shares)
                for seat, batch in zip(self.active, batches, strict=True)
            ]
            return joint_gradients(self.model, self.batches, parts, rows)

        losses, rows = shrinking(attempt, self.rows, self.note)
        self._shrink(rows)
        for seat, batch, loss, state in zip(self.active, batches, losses, before, strict=True):
            self._update(seat, batch, loss, state)
        self.active = [seat for seat in self.active if seat.outcome is None]

    def _update(self, seat: Seat, batch: Sequence[Numbered], loss: float | NotFinite, random: Any) -> None:
        """One member's step, whose gradients are there; ``random`` is what its random numbers were before."""
        stepper, rate = seat.loop.stepper, seat.loop.stepper.learning_rate
        try:
            if isinstance(loss, NotFinite):
                raise loss
            norm = stepper.update(batch)
        except (NotFinite, RuntimeError) as failure:
            if isinstance(failure, NotFinite):
                seat.keep(random)
            told = seat.loop.explained(failure, rate)
            if told is None:
                raise
            if isinstance(failure, RuntimeError):  # memory is everybody's
                raise told from failure
            seat.fail(told, seat.loop.state.position.step + 1)
        else:
            self.on_step(seat.index, seat.loop.record(batch, loss, norm, rate))
        finally:
            stepper.optimizer.zero_grad(set_to_none=True)

    def _validate(self, seat: Seat) -> bool:
        """Validate a member if it is time; whether it is the best so far."""
        try:
            with route(self.model, seat.name), self.batches.sharing_if(seat.shares):
                best, rows = seat.loop.validate(self.rows)
        except OutOfMemoryError:  # memory is everybody's
            raise
        except TrainingError as failure:
            seat.fail(failure, seat.loop.state.position.step)
            return False
        self._shrink(rows)
        return best

    def _shrink(self, rows: int) -> None:
        """Remember that memory allows ``rows`` rows at once, also over a kill."""
        for seat in self.active if rows < self.rows else ():
            position = seat.loop.state.position
            position.joint_rows, position.micro_batch = rows, min(position.micro_batch, rows)
        self.rows = rows

    def _save(self) -> None:
        """Write checkpoints of all members, and only then remove old ones: one step that all have is always there."""
        for seat in self.active:
            seat.save()
        for seat in self.active:
            seat.loop.checkpoints.prune()

    def _finish(self) -> None:
        """Let those leave that have ended, whose last checkpoint is written."""
        for seat in [each for each in self.active if each.loop.ended]:
            seat.loop.checkpoints.prune()  # a kill may have come before
            seat.loop.take_best()
            seat.outcome = result_of(seat.loop)
            self.on_end(seat.index, seat.outcome)
        self.active = [seat for seat in self.active if seat.outcome is None]
