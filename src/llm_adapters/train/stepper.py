"""One optimiser step, through accelerate: micro-batches, clipping, AdamW, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import UserError
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.memory import shrinking
from llm_adapters.train.randomness import RandomState
from llm_adapters.train.schedule import scheduler


class Numbered(NamedTuple):
    """A training example and its number in the data, from 1."""

    row: int
    example: Encoded


class NotFinite(ArithmeticError):  # noqa: N818 – the loop makes the user's error of it
    """A step that would have spoilt the adapter, and was not taken.

    Attributes:
        rows: the rows that may be the cause.
    """

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(what)
        self.rows = sorted(rows)


class Stepper:
    """Model, optimiser and schedule of a training under way.

    Args:
        note: told when the micro-batch shrinks.
        batches: how examples go through the model, if that is known already.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        settings: TrainSection,
        *,
        learning_rate: float,
        steps: int,
        pad_id: int,
        note: Callable[[str], None],
        batches: Batches | None = None,
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
        self.settings, self.note = settings, note
        self.device: torch.device = self.accelerator.device
        self.plain_optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = scheduler(self.plain_optimizer, steps=steps, warmup=settings.warmup, schedule=settings.schedule)
        self.model, self.optimizer = self.accelerator.prepare(model, self.plain_optimizer)
        plain = self.accelerator.unwrap_model(self.model)
        self.batches = batches or Batches(plain, pad_id=pad_id, device=self.device, packed=settings.packing)
        if settings.gradient_checkpointing:
            plain.gradient_checkpointing_enable({"use_reentrant": False})

    def close(self) -> None:
        """Leave the model as it was found."""
        if self.settings.gradient_checkpointing:
            self.accelerator.unwrap_model(self.model).gradient_checkpointing_disable()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, batch: Sequence[Numbered], micro_batch: int) -> tuple[float, float, int]:
        """One optimiser step.

        Returns:
            The mean loss, the gradient's norm before clipping, and the micro-batch that memory allowed.

        Raises:
            NotFinite: the loss or the gradient is no number; nothing was changed.
            TrainingError: out of memory with a single row.
        """
        before = RandomState.take(self.device)

        def attempt(size: int) -> float:
            before.restore()
            self.optimizer.zero_grad(set_to_none=True)
            return self._gradients(batch, size)

        try:
            mean, size = shrinking(attempt, micro_batch, self.note)
            norm = self.update(batch)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return mean, norm, size

    def update(self, batch: Sequence[Numbered]) -> float:
        """Clip the gradients that ``batch`` gave and take the step; gives their norm before clipping.

        Raises:
            NotFinite: the gradient is no number; nothing was changed.
        """
        limit = math.inf if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            raise NotFinite(f"the gradient's norm is {norm}", [row for row, _ in batch])
        self.optimizer.step()
        self.schedule.step()
        return norm

    def _gradients(self, batch: Sequence[Numbered], size: int) -> float:
        """The mean loss over the batch's labelled tokens, and its gradients, from pieces of ``size`` rows."""
        indices = self.batches.pieces([len(row.example.input_ids) for row in batch], size)
        pieces = [[batch[index] for index in piece] for piece in indices]
        total = sum(labelled_tokens(row.example.labels) for row in batch)
        mean = 0.0
        suspects: list[int] = []
        for piece in pieces:
            with self.batches.in_force():
                loss = summed_loss(self.model, self.batches.tensors([row.example for row in piece])) / total
                self.accelerator.backward(loss)
            value = float(loss.detach())
            mean += value
            if not math.isfinite(value):
                suspects += [row.row for row in piece]
        if suspects or not math.isfinite(mean):
            raise NotFinite(f"the loss is {mean}", suspects or [row.row for row in batch])
        return mean
