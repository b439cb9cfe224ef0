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
from llm_adapters.train.randomness import seed_step
from llm_adapters.train.state import TrainingState
from llm_adapters.train.stepper import NotFinite, Numbered, Stepper
from llm_adapters.train.stop import Stop
from llm_adapters.train.team import Team
from llm_adapters.train.validation import Validation


@dataclass
class Loop:
    """The parts of a training, and their order. What changes lives in ``state``; see there for what a kill leaves."""

    settings: TrainSection
    steps: int
    examples: Sequence[Numbered]
    order: Order
    validation: Validation | None
    stepper: Stepper
    state: TrainingState
    checkpoints: Checkpoints
    stop: Stop
    note: Callable[[str], None]
    team: Team

    def run(self, metrics: Path, on_step: Callable[[Metrics], None] | None) -> list[float]:
        """Train to the end, from the newest checkpoint if there is one; gives the loss of every step."""
        newest = self.team.from_leader(self.checkpoints.newest)
        if newest is not None:
            self.state.restore(newest, self.team)
            self.state.position.resumed.append(self.state.position.step)
            self.note(f"going on from '{newest}'")
        position = self.state.position
        log = MetricsLog(metrics if self.team.leads else None, position.step)
        if self.team.leads and len(log.losses) < position.step:
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
                    if on_step is not None:
                        on_step(row)
                    best = self._validate(log)
                    asked = self.team.any(self.stop.asked)  # once: a signal may come between two looks
                    due = best or asked or self._due(time.perf_counter() - written)
                    if due and self.team.leads:
                        log.sync()
                        self.checkpoints.save(position.step, self.state.files(), best=position.best_step)
                        written = time.perf_counter()
                    if asked:
                        raise Stopped(f"stopped after step {position.step} of {self.steps}")
        finally:
            log.close()
        self.team.from_leader(self._take_best)
        self.team.copy_from_leader(self.state.adapter.state_dict().values())
        return self.team.from_leader(lambda: log.losses)

    def _step(self) -> Metrics:
        position, rate = self.state.position, self.stepper.learning_rate
        batch = [self.examples[index] for index in self.order.batch(position.step)]
        seed_step(self.order.seed, position.step, self.team)
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
        parts, position.micro_batch = shrinking(
            self._validation_losses, position.micro_batch, self.note, on_any=self.stepper.ran_out
        )
        assert self.validation is not None
        loss = self.validation.mean(self.team.gather(parts))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is {loss} after step {position.step}",
                mend="a lower learning rate (train.learning_rate), max_grad_norm, or float32",
            )
        log.add({"step": position.step, "validation_loss": loss})
        return position.judge(loss)

    def _validation_losses(self, size: int) -> dict[int, float]:
        assert self.validation is not None
        with self.stepper.passes():
            return self.validation.measure(self.stepper.model, self.stepper.batches, size, self.team)

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
