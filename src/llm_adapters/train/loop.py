"""The training loop: step, row, validation, checkpoint; resumable at any moment with the same result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import OutputError, Stopped, TrainingError
from llm_adapters.model.memory import is_out_of_memory
from llm_adapters.train.checkpoint import Checkpoints, damage
from llm_adapters.train.memory import shrinking
from llm_adapters.train.metrics import Metrics, MetricsLog
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.order import Order
from llm_adapters.train.randomness import RandomState, seed_step
from llm_adapters.train.state import TrainingState
from llm_adapters.train.stepper import NotFinite, Stepper
from llm_adapters.train.stop import Stop
from llm_adapters.train.team import Team
from llm_adapters.train.trackers import Trackers
from llm_adapters.train.validation import BrokenOff, Measured, Validation

_CALMER = (
    "a lower learning rate (train.learning_rate), max_grad_norm, or float32; a changed recipe begins anew, with --force"
)


@dataclass
class Loop:
    """The parts of a training, and their order. What changes lives in ``state``; see there for what a kill leaves.

    :meth:`run` trains one adapter by itself; a cohort takes the same parts of all its members in turn.
    """

    settings: TrainSection
    steps: int
    examples: Sequence[Numbered]
    order: Order
    validation: Validation | None
    accuracy: Callable[[], float] | None
    stepper: Stepper
    state: TrainingState
    checkpoints: Checkpoints
    trackers: Trackers
    stop: Stop
    note: Callable[[str], None]
    team: Team
    log: MetricsLog = field(init=False)
    _began: float = field(init=False)
    _written: float = field(init=False)

    def run(self, metrics: Path, on_step: Callable[[Metrics], None] | None) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        self.begin(metrics, self.team.from_leader(self.checkpoints.newest))
        position = self.state.position
        try:
            with self.stop.deferred():
                while not self.ended:
                    if not position.unvalidated:
                        row = self._step()
                        if on_step is not None:
                            on_step(row)
                    try:
                        best, position.micro_batch = self.validate(position.micro_batch)
                        asked = self.team.any(self.stop.asked)  # once: a signal may come between two looks
                    except BrokenOff:  # who stops a process may not wait for as long as a validation takes
                        best, asked = False, True
                    if self.team.leads and (best or asked or self.due()):
                        self.save()
                    if asked:
                        raise Stopped(f"stopped after step {position.step} of {self.steps}")
        finally:
            self.log.close()
            self.trackers.finish()
        self.team.from_leader(self.take_best)
        self.team.copy_from_leader(self.state.adapter.state_dict().values())

    def begin(self, metrics: Path, checkpoint: Path | None) -> None:
        """Go on from a checkpoint, or begin; the rows of ``metrics`` after it will be written again."""
        wanted = self.state.position.micro_batch
        if checkpoint is not None:
            self.state.restore(checkpoint, self.team)
            self.state.position.resumed.append(self.state.position.step)
            self.note(f"going on from '{checkpoint}'")
        position = self.state.position
        if position.micro_batch < wanted:
            self.note(f"{position.micro_batch} rows at a time, as before the interruption, not {wanted}")
        position.micro_batch = min(position.micro_batch, wanted)
        if self.team.from_leader(lambda: self.checkpoints.has_lost(position.best_step)):
            position.forget_best()
            position.unvalidated = self._validates
        path = metrics if self.team.leads else None
        self.log = MetricsLog(path, position.step, unvalidated=position.unvalidated)
        if self.team.leads and len(self.log.losses) < position.step:
            lacking = position.step - len(self.log.losses)
            self.note(f"'{metrics}' lacks {lacking} of the rows before step {position.step}")
        self.trackers.start(position.step)
        self._written = time.perf_counter()
        self._began = self._written - position.seconds

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or patience is at its end, and what was trained last is validated."""
        position = self.state.position
        return not position.unvalidated and (position.step >= self.steps or position.exhausted(self.settings.patience))

    def batch(self) -> list[Numbered]:
        """The examples of the next step."""
        return [self.examples[index] for index in self.order.batch(self.state.position.step)]

    def _step(self) -> Metrics:
        position, rate, batch = self.state.position, self.stepper.learning_rate, self.batch()
        before = RandomState.take(self.stepper.device)
        seed_step(self.order.seed, position.step, self.team)
        try:
            loss, norm, position.micro_batch = self.stepper.step(batch, position.micro_batch)
        except (NotFinite, RuntimeError) as failure:
            if isinstance(failure, NotFinite) and self.team.leads:
                before.restore()
                self.keep()
            told = self.explained(failure, rate)
            if told is None:
                raise
            raise told from failure
        return self.record(batch, loss, norm, rate)

    def keep(self, *, prune: bool = True) -> None:
        """Write a checkpoint of the steps that were taken, if the last one is older; see :meth:`save`."""
        step = self.state.position.step
        if step and self.checkpoints.last != self.checkpoints.at(step):
            with suppress(OutputError):  # what went wrong must be told, whatever the disk says
                self.save(prune=prune)

    def explained(self, failure: Exception, rate: float) -> TrainingError | None:
        """What the user is told when the next step could not be taken at a learning rate; None if it is a bug."""
        step = self.state.position.step + 1
        if isinstance(failure, NotFinite):
            return TrainingError(
                f"{failure} at learning rate {rate:g} in step {step}, on the rows "
                f"{', '.join(map(str, failure.rows))} of the training data; nothing was changed by this step"
                + self._last_good,
                mend=f"look at these rows; {_CALMER}",
            )
        if is_out_of_memory(failure):
            return TrainingError(
                f"out of memory in the optimiser's step {step}, which no smaller micro-batch mends",
                mend="a smaller adapter, or a machine with more memory; the same command goes on",
            )
        return None

    @property
    def _last_good(self) -> str:
        last = self.checkpoints.last
        return f", and the last good checkpoint is '{last}'" if last else ""

    def record(self, batch: Sequence[Numbered], loss: float, norm: float, rate: float) -> Metrics:
        """Count a step that was taken on ``batch``, and write its row."""
        position = self.state.position
        position.step += 1
        position.tokens += sum(len(row.example.input_ids) for row in batch)
        position.seconds = time.perf_counter() - self._began
        position.unvalidated = self._validates
        row: Metrics = {
            "step": position.step, "loss": loss, "grad_norm": norm, "learning_rate": rate, "tokens": position.tokens,
            "seconds": round(position.seconds, 3),
            "tokens_per_second": round(position.tokens / max(1e-9, position.seconds), 1),
        }  # fmt: skip
        self.log.add(row)
        self.trackers.log(row)
        return row

    @property
    def _validates(self) -> bool:
        """Whether a validation belongs to this step: it is time, or the end."""
        step, every = self.state.position.step, self.settings.validate_every or self.order.steps_per_epoch
        return self.validation is not None and (step % every == 0 or step >= self.steps)

    def validate(self, micro_batch: int) -> tuple[bool, int]:
        """Validate if it is time, and at the end in any case.

        Returns:
            Whether the adapter is the best so far, and the rows at once that memory allowed.

        Raises:
            BrokenOff: a stop was asked for; the validation is still due.
        """
        position = self.state.position
        if self.validation is None or not position.unvalidated:
            return False, micro_batch
        if self.team.any(self.stop.asked):
            raise BrokenOff
        parts, micro_batch = shrinking(self._validation_losses, micro_batch, self.note, on_any=self.stepper.ran_out)
        measured = self.team.gather(parts)
        loss, suspects = self.validation.mean(measured), self.validation.suspects(measured)
        if suspects:
            here = self.checkpoints.at(position.step)  # from before this validation was broken off: no good one
            raise TrainingError(
                f"the validation loss is {loss} after step {position.step}, on the validation rows "
                f"{', '.join(map(str, suspects))}{self._last_good if self.checkpoints.last != here else ''}",
                mend=f"look at these rows; {_CALMER}",
            )
        row: Metrics = {"step": position.step, "validation_loss": loss}
        by_accuracy = self.settings.best_by == "accuracy" or self.accuracy is not None
        accuracy = self.team.from_leader(self._accuracy) if by_accuracy else None
        if accuracy is not None:
            row["validation_accuracy"] = accuracy
        self.log.add(row)
        self.trackers.log(row)
        position.unvalidated = False
        return position.judge(loss, accuracy), micro_batch

    def _accuracy(self) -> float:
        assert self.accuracy is not None
        with self.stepper.uncompiled():
            return self.accuracy()

    def _validation_losses(self, size: int) -> list[Measured]:
        assert self.validation is not None
        with self.stepper.passes():
            return self.validation.measure(self.stepper.model, self.stepper.batches, size, self.team, asked=self._asked)

    def _asked(self) -> bool:
        """Whether to stop in the middle of something; several processes do so only where all of them are."""
        return self.team.size == 1 and self.stop.asked

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        by_step = every is not None and self.state.position.step % every == 0
        return by_step or (minutes is not None and time.perf_counter() - self._written >= 60 * minutes)

    def save(self, *, prune: bool = True) -> None:
        """Write a checkpoint; ``prune`` removes those that are no longer kept."""
        self.log.sync()
        position = self.state.position
        self.checkpoints.save(position.step, self.state.files(), best=position.best_step, prune=prune)
        self._written = time.perf_counter()

    def take_best(self) -> None:
        """Give the adapter the parameters that it had at the best validation."""
        best = self.state.position.best_step
        if best in (None, self.state.position.step):
            return
        problem = damage(self.checkpoints.at(best))
        if problem:
            raise OutputError(
                f"the best adapter lies in '{self.checkpoints.at(best)}', which cannot be used: {problem}",
                mend="the same command goes on from the newest that can be used",
            )
        self.state.restore_adapter(self.checkpoints.at(best))
