"""Training one adapter on a frozen base: what goes in, and what comes out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.digest import data_digest
from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.errors import DataError, TrainingError
from llm_adapters.train.batches import Batches
from llm_adapters.train.checkpoint import Checkpoints
from llm_adapters.train.loop import Loop
from llm_adapters.train.metrics import Metrics
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.options import check_options
from llm_adapters.train.order import Order, total_steps
from llm_adapters.train.position import Position
from llm_adapters.train.randomness import seed_all
from llm_adapters.train.sharding import is_sharded
from llm_adapters.train.state import DTYPE, TrainingState
from llm_adapters.train.stepper import Stepper
from llm_adapters.train.stop import Stop
from llm_adapters.train.team import Team
from llm_adapters.train.trackers import Trackers, check_trackers, recipe_of
from llm_adapters.train.validation import Validation

WITHOUT_EFFECT = {
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "distributed",
    "trackers",
    "micro_batch",
    "gradient_checkpointing",
}
"""Fields of the recipe that may change while a run is under way: what is trained does not depend on them, but for the
rounding of another number of processes or another micro-batch, whose dropout draws other numbers too."""


@dataclass(frozen=True)
class TrainResult:
    """What training took and gave.

    Attributes:
        steps: optimiser steps.
        tokens: tokens read, padding not counted.
        seconds: wall time of the loop, over all sessions.
        first_loss, last_loss: mean loss over the first and last tenth of the steps.
        best_step, best_loss: where validation was best, and the adapter comes from; None without validation.
        micro_batch: rows that went through the model at once in the end.
        resumed: the steps at which an interrupted training was gone on with.
        best_accuracy: that of ``best_step``, where the best is chosen by accuracy.
    """

    steps: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    best_step: int | None
    best_loss: float | None
    micro_batch: int
    resumed: list[int]
    best_accuracy: float | None = None


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
    validation: Sequence[Encoded] = (),
    accuracy: Callable[[], float] | None = None,
    rows: Sequence[int] | None = None,
    validation_rows: Sequence[int] | None = None,
    stop: Stop | None = None,
    on_step: Callable[[Metrics], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train an attached adapter; write ``metrics.jsonl`` and ``checkpoints/`` into ``folder``.

    The loss of a step is the mean over all labelled tokens of its batch, however it is split into
    micro-batches. AdamW, β = (0.9, 0.999), as in the reference recipes. A training that was interrupted goes on from
    the newest whole checkpoint in ``folder``, and ends with the same bits as one that was not. With validation the
    adapter ends as it was at the best one.

    In several processes (``torchrun``, ``accelerate launch``) all call this with the same arguments, and each takes a
    share of every batch; the first alone writes. A training may go on in another number of them.

    Args:
        model: the model that ``adapter`` is attached to.
        adapter: freshly initialised, the same way every time.
        examples: encoded training examples; those without a label are left out.
        settings: the recipe.
        learning_rate: the peak learning rate.
        pad_id: any valid token id.
        seed: order of the examples and dropout.
        folder: the run's folder, made if it is not there.
        validation: encoded examples that are not trained on.
        accuracy: measures the model as it is, from 0 to 1, without drawing random numbers, and leaves it as it was;
            with it the best of the validations is the one with the largest accuracy.
        rows: the number of every example in the user's data, for messages; 1, 2, … unless given.
        validation_rows: the same of those that are not trained on.
        stop: asked after every step whether to stop.
        on_step: called after every step with its metrics.
        on_note: told what a user should know: going on, damage, a smaller micro-batch.

    Raises:
        DataError: no example has a label.
        MissingExtraError: the package of a tracker is not installed.
        TrainingError: a loss is no number, or memory does not suffice for one row.
        OutputError: a file cannot be written, or the checkpoints are another training's.
        Stopped: ``stop`` was asked; a checkpoint was written.
    """
    with Team.join().together() as team:
        loop = prepare(
            model, adapter, examples, settings, learning_rate=learning_rate, pad_id=pad_id, seed=seed, folder=folder,
            validation=validation, accuracy=accuracy, rows=rows, validation_rows=validation_rows, stop=stop,
            team=team, note=on_note if on_note is not None and team.leads else lambda _text: None,
        )  # fmt: skip
        seed_all(seed)
        was_training = model.training
        model.train()
        try:
            loop.stepper.open()
            loop.stepper.share_beginnings()
            if settings.cache_frozen_layers:
                loop.stepper.cache_frozen_layers(loop.examples, loop.steps)
            loop.run(folder / "metrics.jsonl", on_step)
        except RuntimeError as failure:
            told = compiler_failure(failure)
            if told is None:
                raise
            raise told from failure
        finally:
            loop.stepper.close()
            model.train(was_training)
        return result_of(loop)


def prepare(
    model: nn.Module,
    adapter: Adapter,
    examples: Sequence[Encoded],
    settings: TrainSection,
    *,
    learning_rate: float,
    pad_id: int,
    seed: int,
    folder: Path,
    validation: Sequence[Encoded],
    rows: Sequence[int] | None,
    validation_rows: Sequence[int] | None,
    stop: Stop | None,
    note: Callable[[str], None],
    team: Team,
    accuracy: Callable[[], float] | None = None,
    batches: Batches | None = None,
) -> Loop:
    """A training that has not begun; see :func:`train`."""
    numbers = range(1, len(examples) + 1) if rows is None else rows
    kept = [Numbered(row, e) for row, e in zip(numbers, examples, strict=True) if has_label(e)]
    places = range(1, len(validation) + 1) if validation_rows is None else validation_rows
    judges = [Numbered(row, e) for row, e in zip(places, validation, strict=True) if has_label(e)]
    for given, used, what in ((examples, kept, "training"), (validation, judges, "validation")):
        if not used and (given or what == "training"):
            raise DataError(f"none of {len(given)} {what} examples has a label left", mend="raise data.max_length")
        if len(used) < len(given):
            note(f"{len(given) - len(used)} of {len(given)} {what} examples have no label left, and are left out")
    check_trackers(settings.trackers)
    if settings.best_by == "accuracy" and is_sharded(settings, team):
        raise TrainingError(
            "train.best_by: accuracy decodes on one process, and train.distributed: fsdp shards the base over all",
            mend="train.best_by=loss, or train.distributed=ddp",
        )
    if settings.best_by == "accuracy" and judges and accuracy is None and team.leads:
        raise TrainingError(
            "train.best_by: accuracy needs a measure of it", mend="pass accuracy=, or train.best_by=loss"
        )
    check_options(settings, adapter, team.size)
    steps = total_steps(len(kept), settings)
    if settings.warmup >= steps:
        note(f"all {steps} steps are warm-up (train.warmup is {settings.warmup}): the learning rate only rises")
    recipe = json.dumps([settings.model_dump(mode="json", exclude=WITHOUT_EFFECT), learning_rate, seed])
    identity = {
        "training data": data_digest([row.example for row in kept]),
        "validation data": data_digest([row.example for row in judges]),
        "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
        "adapter": hashlib.sha256(json.dumps([method.recipe() for method in adapter.methods]).encode()).hexdigest(),
        DTYPE: str(adapter.base.dtype).removeprefix("torch."),
    }
    team.agree(identity)
    stepper = Stepper(
        model, adapter, settings, learning_rate=learning_rate, steps=steps, pad_id=pad_id, note=note, team=team,
        batches=batches,
    )  # fmt: skip
    position = Position(micro_batch=settings.micro_batch or settings.batch_size)
    return Loop(
        settings=settings,
        steps=steps,
        examples=kept,
        order=Order([len(row.example.input_ids) for row in kept], settings.batch_size, seed),
        validation=Validation(judges) if judges else None,
        accuracy=accuracy,
        stepper=stepper,
        state=TrainingState(adapter, stepper.optimizer, stepper.schedule, position, identity),
        checkpoints=Checkpoints(folder / "checkpoints", settings.keep_checkpoints, note),
        trackers=Trackers(
            settings.trackers if team.leads else (), folder, note, recipe_of(settings, adapter, learning_rate, seed)
        ),
        stop=stop or Stop(),
        note=note,
        team=team,
    )


def compiler_failure(failure: RuntimeError) -> TrainingError | None:
    """What the user is told when torch.compile failed; None if it was something else."""
    if not type(failure).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    cause = getattr(failure, "inner_exception", failure)
    return TrainingError(
        f"torch.compile failed: {str(cause).strip().partition(chr(10))[0]}",
        mend="train.compile=false (--force, if the run has begun); on a CPU it needs a C++ compiler",
    )


def result_of(loop: Loop) -> TrainResult:
    """What a training that has ended took and gave."""
    losses = loop.team.from_leader(lambda: loop.log.losses) or [math.nan]  # a metrics file that was lost
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    end = loop.state.position
    return TrainResult(
        end.step,
        end.tokens,
        end.seconds,
        first,
        last,
        end.best_step,
        end.best_loss,
        end.micro_batch,
        end.resumed,
        end.best_accuracy,
    )


def has_label(example: Encoded) -> bool:
    """Whether there is anything to learn from an example."""
    return any(label != IGNORED for label in example.labels[1:])
