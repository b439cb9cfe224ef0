"""The training loop: step, row, validation, checkpoint; resumable at any moment with the same result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import OutputError, Stopped, TrainingError
from llm_adapters.model.memory import is_out_of_memory
from llm_adapters.train.checkpoint import Checkpoints, damage
from llm_adapters.train.memory import shrinking
from llm_adapters.train.metrics import Metrics, MetricsLog
from llm_adapters.train.order import Order
from llm_adapters.train.state import TrainingState
from llm_adapters.train.stepper import NotFinite, Numbered, Stepper
from llm_adapters.train.stop import Stop
from llm_adapters.train.trackers import Trackers
from llm_adapters.train.validation import Validation


@dataclass
class Loop:
    """The parts of a training, and their order. What changes lives in ``state``; see there for what a kill leaves."""

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

    def run(self, metrics: Path, on_step: Callable[[Metrics], None] | None) -> list[float]:
        """Train to the end, from the newest checkpoint if there is one; gives the loss of every step."""
        newest = self.checkpoints.newest()
        if newest is not None:
            self.state.restore(newest)
            self.state.position.resumed.append(self.state.position.step)
            self.note(f"going on from '{newest}'")
        position = self.state.position
        log = MetricsLog(metrics, position.step)
        self.trackers.start(position.step)
        if len(log.losses) < position.step:
            self.note(f"'{metrics}' lacks {position.step - len(log.losses)} of the rows before step {position.step}")
        began, written = time.perf_counter() - position.seconds, time.perf_counter()
        try:
            with self.stop.deferred():
                while position.step < self.steps and not position.exhausted(self.settings.patience):
                    row = self._step()
                    position.seconds = time.perf_counter() - began
                    row["seconds"] = round(position.seconds, 3)
                    row["tokens_per_second"] = round(position.tokens / max(1e-9, position.seconds), 1)
                    log.add(row)
                    self.trackers.log(row)
                    if on_step is not None:
                        on_step(row)
                    best = self._validate(log)
                    asked = self.stop.asked  # once: a signal may come between two looks
                    if best or asked or self._due(time.perf_counter() - written):
                        log.sync()
                        self.checkpoints.save(position.step, self.state.files(), best=position.best_step)
                        written = time.perf_counter()
                    if asked:
                        raise Stopped(f"stopped after step {position.step} of {self.steps}")
        finally:
            log.close()
            self.trackers.finish()
        self._take_best()
        return log.losses

    def _step(self) -> Metrics:
        position, rate = self.state.position, self.stepper.learning_rate
        batch = [self.examples[index] for index in self.order.batch(position.step)]
        try:
            loss, norm, position.micro_batch = self.stepper.step(batch, position.micro_batch)
        except NotFinite as failure:
            last = self.checkpoints.last
            raise TrainingError(
                f"{failure} at learning rate {rate:g} in step {position.step + 1}, on the rows "
                f"{', '.join(map(str, failure.rows))} of the training data; nothing was changed by this step"
                + (f", and the last good checkpoint is '{last}'" if last else ""),
                mend="look at these rows; a lower learning rate (train.learning_rate), max_grad_norm, or float32",
            ) from failure
        except RuntimeError as failure:
            if not is_out_of_memory(failure):
                raise
            raise TrainingError(
                f"out of memory in the optimiser's step {position.step + 1}, which no smaller micro-batch mends",
                mend="a smaller adapter, or a machine with more memory; the same command goes on",
            ) from failure
        position.step += 1
        position.tokens += sum(len(row.example.input_ids) for row in batch)
        return {"step": position.step, "loss": loss, "grad_norm": norm, "learning_rate": rate,
                "tokens": position.tokens}  # fmt: skip

    def _validate(self, log: MetricsLog) -> bool:
        """Validate if it is time, and at the end in any case; whether the adapter is the best so far."""
        position, every = self.state.position, self.settings.validate_every or self.order.steps_per_epoch
        if self.validation is None or (position.step % every and position.step < self.steps):
            return False
        measure, batches = self.validation.measure, self.stepper.batches
        loss, position.micro_batch = shrinking(
            lambda size: measure(self.stepper.model, batches, size), position.micro_batch, self.note
        )
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is {loss} after step {position.step}",
                mend="a lower learning rate (train.learning_rate), max_grad_norm, or float32",
            )
        row: Metrics = {"step": position.step, "validation_loss": loss}
        accuracy = None if self.accuracy is None else self.accuracy()
        if accuracy is not None:
            row["validation_accuracy"] = accuracy
        log.add(row)
        self.trackers.log(row)
        return position.judge(loss, accuracy)

    def _due(self, seconds: float) -> bool:
        """Whether it is time for a checkpoint, ``seconds`` after the last one."""
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        by_step = every is not None and self.state.position.step % every == 0
        return by_step or (minutes is not None and seconds >= 60 * minutes)

    def _take_best(self) -> None:
        """Give the adapter the parameters that it had at the best validation."""
        best = self.state.position.best_step
        if best in (None, self.state.position.step):
            return
        problem = damage(self.checkpoints.at(best))
        if problem:
            raise OutputError(
                f"the best adapter lies in '{self.checkpoints.at(best)}', which cannot be used: {problem}",
                mend="the same command goes on from an earlier checkpoint",
            )
        self.state.restore_adapter(self.checkpoints.at(best))
