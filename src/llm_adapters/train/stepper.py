"""One optimiser step: each process's share of the batch in micro-batches, clipping, AdamW, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attached, engine_of
from llm_adapters.adapters.engine import plain_layers
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import TrainingError
from llm_adapters.model.fused import has_kernels
from llm_adapters.train.batches import Batches, balanced
from llm_adapters.train.beginnings import shares_beginnings
from llm_adapters.train.frozen_layers import FrozenLayers, lowest_layer
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.memory import compute_activations_again, shrinking
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.randomness import RandomState
from llm_adapters.train.scaling import loss_scale, unscale
from llm_adapters.train.schedule import scheduler
from llm_adapters.train.sharding import is_sharded, shard
from llm_adapters.train.team import Team

_KINDS = 64
"""Kinds of layers that may be compiled; torch's own limit of 8 falls back silently."""


class NotFinite(ArithmeticError):  # noqa: N818 – the loop makes the user's error of it
    """A step that would have spoilt the adapter, and was not taken.

    Attributes:
        rows: the rows that may be the cause.
    """

    def __init__(self, what: str, rows: Sequence[int]) -> None:
        super().__init__(what)
        self.rows = sorted(set(rows))


class Stepper:
    """Model, optimiser and schedule of a training under way.

    Args:
        note: told when the micro-batch, the rows that go through the model at once, shrinks for a lack of memory.
        team: the processes that share every batch; all of them take every step.
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
        team: Team,
        batches: Batches | None = None,
    ) -> None:
        self.model, self.settings, self.note, self.team = model, settings, note, team
        self.sharded = is_sharded(settings, team)
        self.device = team.device() if self.sharded else adapter.base.device
        plain = adapter.base.model
        # Only the leader tries: of a base that is to be sharded the others do not have the weights.
        tries = settings.packing and team.leads
        as_written = self.sharded or settings.compiles  # what moves, and what is compiled, stays as it is
        self.batches = batches or Batches(
            plain,
            pad_id=pad_id,
            device=self.device,
            packed=tries,
            prepacked=not as_written,
            fused=not as_written and has_kernels(self.device),
            recompute=not as_written,
            apart=not self.sharded,
        )
        found = team.from_leader(lambda: (self.batches.packed, self.batches.can_share))
        self.batches.packed, self.batches.can_share = found
        if batches is None and settings.packing and not self.batches.packed:
            note("batches are padded: this model, as it is loaded, does not take examples packed into one row")
        if self.sharded:
            shard(plain, adapter, team)
        else:
            team.copy_from_leader(adapter.state_dict().values())
        self.plain: Any = plain
        self.parameters = [p for p in adapter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = scheduler(self.optimizer, steps=steps, warmup=settings.warmup, schedule=settings.schedule)
        self.frozen: FrozenLayers | None = None
        self.adapter, self._opened = adapter, ExitStack()

    def open(self) -> None:
        """Set the model up for the steps, until :meth:`close`: checkpointing, compiled layers."""
        if self.settings.gradient_checkpointing and not getattr(self.plain, "is_gradient_checkpointing", False):
            compute_activations_again(self.plain)
            self._opened.callback(self.plain.gradient_checkpointing_disable)
        if self.settings.compile and not self.settings.compiles:
            self.note("train.compile: nothing is compiled, because gradient checkpointing runs outside of the compiler")
        if self.settings.compiles:
            self._opened.enter_context(self._compiled())

    def close(self) -> None:
        """Leave the model as it was found; a sharded base stays so."""
        self._opened.close()

    def share_beginnings(self) -> None:
        """Compute a beginning that the examples of a micro-batch share once, if nothing speaks against it.

        For one adapter that trains alone.
        """
        acting = attached(self.plain).values()
        self.batches.sharing = self.batches.can_share and shares_beginnings(self.settings, acting)

    def cache_frozen_layers(self, rows: Sequence[Numbered], steps: int) -> None:
        """Keep what the layers below the adapter give for these rows, of which so many steps are taken.

        Raises:
            TrainingError: it cannot stand in for the layers.
        """
        lengths = sorted((len(row.example.input_ids) for row in rows), reverse=True)
        most = sum(lengths[: steps * self.settings.batch_size])
        self.frozen = FrozenLayers(self.model, self.adapter, self.batches, [row.example for row in rows], most=most)
        above = lowest_layer(self.adapter)
        self.note(f"layers 0 to {above - 1} have no adapter: they are computed once for each example")

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """While it lasts, the layers are compiled; those of one kind share what is compiled."""
        first = lowest_layer(self.adapter) if self.settings.cache_frozen_layers else 0
        blocks: Sequence[Any] = self.adapter.base.sites.blocks[first:]
        before = [block._compiled_call_impl for block in blocks]
        engine = engine_of(self.plain)
        torch._dynamo.reset()  # what earlier trainings of this process compiled counts against the limit
        # A prefix enters where the layer's number is read: as a constant it would have every layer compiled anew. But
        # the numbers of heads are then no constants either, so compiling takes longer.
        numbers = any(adapter.virtual_tokens for adapter in engine.adapters.values())
        known = torch._dynamo.config.patch(recompile_limit=_KINDS, allow_unspec_int_on_nn_module=numbers)
        # No length is taken for a width that it happens to equal: what is compiled first would decide.
        apart = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
        was_compiled, engine.layers_compiled = engine.layers_compiled, True
        try:
            with known, apart:
                for block in blocks:
                    block.compile(dynamic=True)
                yield
        finally:
            engine.layers_compiled = was_compiled
            for block, call in zip(blocks, before, strict=True):
                block._compiled_call_impl = call
            torch._dynamo.reset()

    def uncompiled(self) -> AbstractContextManager[Any]:
        """While it lasts, compiled layers are plain ones: decoding would compile them anew for its cache."""
        return plain_layers() if self.settings.compiles else nullcontext()

    def passes(self) -> AbstractContextManager[None]:
        """What passes through the model stand in: over a sharded base no process can do without the others."""
        return self.team.entangled() if self.sharded else nullcontext()

    def ran_out(self, here: bool) -> bool:
        """Whether any process ran out of memory.

        Raises:
            TrainingError: this one did, over a sharded base, where the others now wait for it in vain.
        """
        if self.sharded and here:
            with self.team.entangled():
                raise TrainingError(
                    f"out of memory on process {self.team.rank}, which over a sharded base ends the training",
                    mend="a smaller train.micro_batch, or train.gradient_checkpointing=true; the same command goes on",
                )
        return self.team.any(here)

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
        lengths = [len(row.example.input_ids) for row in batch]
        most = math.ceil(len(batch) / self.team.size)
        mine = [batch[index] for index in balanced(lengths, self.team.size, most)[self.team.rank]]
        total = sum(labelled_tokens(row.example.labels) for row in batch)

        def attempt(size: int) -> tuple[float, list[int]]:
            before.restore()
            self.optimizer.zero_grad(set_to_none=True)
            return self._gradients(mine, batch[:1], total, passes=math.ceil(most / size), size=size)

        try:
            found, size = shrinking(attempt, micro_batch, self.note, rows=most, on_any=self.ran_out)
            parts = self.team.gather(found)
            mean, suspects = sum(loss for loss, _ in parts), [row for _, rows in parts for row in rows]
            if suspects or not math.isfinite(mean):
                raise NotFinite(f"the loss is {mean}", suspects or [row.row for row in batch])
            self.team.sum_gradients(self.parameters)
            norm = self.update(batch)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return mean, norm, size

    def update(self, batch: Sequence[Numbered]) -> float:
        """Clip the gradients that ``batch`` gave, of all processes, and take the step; their norm before clipping.

        Raises:
            NotFinite: the gradient is no number; nothing was changed.
        """
        limit = math.inf if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            raise NotFinite(f"the gradient's norm is {norm}", [row for row, _ in batch])
        self.optimizer.step()
        self.schedule.step()
        return norm

    def _gradients(
        self, rows: Sequence[Numbered], filler: Sequence[Numbered], total: int, *, passes: int, size: int
    ) -> tuple[float, list[int]]:
        """The loss of some rows, as a share of the mean over ``total`` labelled tokens, and its gradients.

        Args:
            rows: this process's, in pieces of ``size``.
            filler: what goes through a sharded base in vain, where this process has fewer pieces than another.
            passes: how many pieces the others have at most.

        Returns:
            The loss, and the rows whose loss is no number.
        """
        indices = self.batches.pieces([len(row.example.input_ids) for row in rows], size) if rows else []
        pieces = [([rows[index] for index in piece], 1.0) for piece in indices]
        if self.sharded:
            pieces += [(list(filler), 0.0)] * (passes - len(pieces))
        losses, scale = [], loss_scale(self.adapter.base.dtype, total)
        for piece, weight in pieces:
            tensors = self.batches.tensors([row.example for row in piece])
            with self.passes(), self._below(piece, tensors), self.batches.in_force():
                loss = summed_loss(self.model, tensors, self.batches.head) * weight / total
                (loss * scale).backward()
            losses.append(loss.detach())
        unscale(self.parameters, scale)
        # Read at the end: a GPU would have nothing to do while each is waited for.
        values = [float(loss) for loss in losses]
        suspects = [
            row.row
            for value, (piece, _) in zip(values, pieces, strict=True)
            if not math.isfinite(value)
            for row in piece
        ]
        return sum(values), suspects

    def _below(self, piece: Sequence[Numbered], tensors: Mapping[str, Any]) -> AbstractContextManager[None]:
        """What stands in for the layers below the adapter, if that is known."""
        if self.frozen is None:
            return nullcontext()
        return self.frozen.standing_in([row.example for row in piece], tensors.get("attention_mask"))
