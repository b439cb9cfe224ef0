"""The training loop: one adapter on a frozen base, through accelerate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.collate import collate, length_sorted_batches
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import DataError, TrainingError, UserError
from llm_adapters.train.checkpoint import save_checkpoint
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.schedule import scheduler

Metrics = dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    """What training took and gave.

    Attributes:
        steps: optimiser steps.
        tokens: tokens read, padding not counted.
        seconds: wall time of the loop.
        first_loss, last_loss: mean loss over the first and last tenth of the steps.
    """

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float


def train(
    model: nn.Module,
    adapter: Adapter,
    examples: Sequence[Encoded],
    settings: TrainSection,
    *,
    learning_rate: float,
    pad_id: int,
    seed: int,
    folder: Path,
    on_step: Callable[[Metrics], None] | None = None,
) -> TrainResult:
    """Train an attached adapter; write ``metrics.jsonl`` and ``checkpoints/`` into ``folder``.

    The loss of a step is the mean over all labelled tokens of its batch, however it is split into
    micro-batches. AdamW, β = (0.9, 0.999), as in the reference recipes.

    Args:
        model: the model that ``adapter`` is attached to.
        examples: encoded training examples; those without a label are left out.
        settings: the recipe.
        learning_rate: the peak learning rate.
        pad_id: any valid token id.
        seed: order of the examples and dropout.
        folder: the run's folder.
        on_step: called after every step with its metrics.

    Raises:
        DataError: no example has a label.
    """
    kept = [example for example in examples if any(label != -100 for label in example.labels[1:])]
    if not kept:
        raise DataError(f"none of {len(examples)} training examples has a label left", mend="raise data.max_length")
    steps = total_steps(len(kept), settings)
    training = _Training(model, adapter, settings, learning_rate=learning_rate, steps=steps, pad_id=pad_id)
    torch.manual_seed(seed)
    was_training = model.training
    model.train()
    losses: list[float] = []
    tokens, started = 0, time.perf_counter()
    try:
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            for step, batch in enumerate(_batches(kept, settings, seed, steps), start=1):
                rate = training.learning_rate
                loss, norm = training.step(batch)
                losses.append(loss)
                tokens += sum(len(example.input_ids) for example in batch)
                seconds = time.perf_counter() - started
                metrics: Metrics = {
                    "step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate, "tokens": tokens,
                    "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1),
                }  # fmt: skip
                log.write(json.dumps(metrics) + "\n")
                log.flush()
                if on_step is not None:
                    on_step(metrics)
                if settings.checkpoint_every and step % settings.checkpoint_every == 0:
                    position = {"step": step, "tokens": tokens}
                    save_checkpoint(folder / "checkpoints", adapter, training.optimizer, position)
    finally:
        training.close()
        model.train(was_training)
    tenth = max(1, len(losses) // 10)
    mean = [sum(part) / tenth for part in (losses[:tenth], losses[-tenth:])]
    return TrainResult(len(losses), tokens, time.perf_counter() - started, mean[0], mean[1])


def total_steps(examples: int, settings: TrainSection) -> int:
    """Optimiser steps that ``settings`` make of so many examples."""
    planned = math.ceil(settings.epochs * math.ceil(examples / settings.batch_size))
    return planned if settings.steps is None else min(planned, settings.steps)


def _batches(examples: Sequence[Encoded], settings: TrainSection, seed: int, steps: int) -> Iterator[list[Encoded]]:
    """``steps`` batches of similar length, epoch after epoch."""
    lengths = [len(example.input_ids) for example in examples]
    taken, epoch = 0, 0
    while taken < steps:
        for batch in length_sorted_batches(lengths, settings.batch_size, seed, epoch)[: steps - taken]:
            yield [examples[i] for i in batch]
            taken += 1
        epoch += 1


class _Training:
    """Model, optimiser and schedule of a training under way."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        settings: TrainSection,
        *,
        learning_rate: float,
        steps: int,
        pad_id: int,
    ) -> None:
        self.accelerator = Accelerator()
        # The recipe alone decides: a mixed precision from the environment, or from a Trainer that ran before in this
        # process, would wrap the base's forward for good.
        self.accelerator.native_amp, self.accelerator.scaler = False, None
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"training in {self.accelerator.num_processes} processes is not possible yet",
                mend="start one process",
            )
        self.parameters = [p for p in adapter.parameters() if p.requires_grad]
        self.settings, self.pad_id = settings, pad_id
        optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=settings.weight_decay)
        self.schedule = scheduler(optimizer, steps=steps, warmup=settings.warmup, schedule=settings.schedule)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if settings.gradient_checkpointing:
            self.accelerator.unwrap_model(self.model).gradient_checkpointing_enable({"use_reentrant": False})

    def close(self) -> None:
        """Leave the model as it was found."""
        if self.settings.gradient_checkpointing:
            self.accelerator.unwrap_model(self.model).gradient_checkpointing_disable()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, batch: Sequence[Encoded]) -> tuple[float, float]:
        """One optimiser step; gives the mean loss and the gradient's norm before clipping."""
        size = self.settings.micro_batch or self.settings.batch_size
        ordered = sorted(batch, key=lambda example: len(example.input_ids))
        pieces = [collate(ordered[i : i + size], self.pad_id) for i in range(0, len(ordered), size)]
        total = sum(labelled_tokens(piece["labels"]) for piece in pieces)
        mean = 0.0
        for piece in pieces:
            on_device = {key: tensor.to(self.accelerator.device) for key, tensor in piece.items()}
            loss = summed_loss(self.model, on_device) / total
            self.accelerator.backward(loss)
            mean += float(loss.detach())
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is {mean} at learning rate {self.learning_rate:g}; nothing was changed by this step",
                mend="a lower learning rate (train.learning_rate), max_grad_norm, or float32",
            )
        limit = math.inf if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return mean, norm
