"""A cohort: several runs whose adapters train at once on one base; each ends as the run by itself would."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import ConfigError, OutputError
from llm_adapters.evaluation.suite import Suite
from llm_adapters.runs.begun import differences, open_run
from llm_adapters.runs.cohort_run import CohortRun, Seat
from llm_adapters.runs.folder import exclusively, replaceable
from llm_adapters.runs.manifest import forget_peak_memory
from llm_adapters.runs.names import MANIFEST
from llm_adapters.runs.run import Observer
from llm_adapters.runs.run_plan import RunPlan
from llm_adapters.train import ALONE, Stop, Team


def execute_cohort(
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    observer: Observer,
    *,
    force: bool = False,
    score: bool = True,
    stop: Stop | None = None,
    rows: int | None = None,
) -> list[str | None]:
    """Carry out several runs at once, or go on with them; each folder ends as :func:`~.run.execute` leaves it.

    The base is loaded once, evaluated once for all that ask it the same, and trained on by all adapters in the same
    forward passes. A run whose training fails ends with ``failed.json`` in its folder, and the others go on.

    Args:
        configs: of the runs; they share the section ``model``.
        folders: of the runs, in the same order.
        observer: told of the progress.
        force: start all again, replacing earlier runs in the folders.
        score: evaluate before and after; otherwise train only.
        stop: asked after every training step whether to stop.
        rows: that go through the model at once in training, of all runs together; by default as many as the largest
            micro-batch that one of them would have alone.

    Returns:
        For every run None, or why it failed.

    Raises:
        ConfigError: they have different bases, or share a folder.
        TrainingError: this is one of several processes.
        UserError: as :func:`~.run.execute`; what keeps one run from beginning keeps all.
        Stopped: ``stop`` was asked; the same call goes on.
    """
    started = time.perf_counter()
    forget_peak_memory()
    _check(configs, folders)
    plans = _plans(configs, score=score)
    rows = rows or max(config.train.micro_batch or config.train.batch_size for config in configs)
    cohort = {"members": [folder.name for folder in folders], "rows": rows}
    complete = [not force and _is_complete(folder, plan) for folder, plan in zip(folders, plans, strict=True)]
    if all(complete):
        raise OutputError(
            "all runs of this cohort are complete", mend="--out another/folder, or --force to replace the runs in it"
        )
    for folder in folders if force else ():  # all of them are looked at before the first is cleared
        if folder.is_dir() and any(folder.iterdir()):
            with exclusively(folder):
                replaceable(folder)
    with ExitStack() as held:
        for folder, plan, done in zip(folders, plans, complete, strict=True):
            if not done:
                held.enter_context(
                    open_run(folder, plan.record, plan.digests, observer.note, force=force, cohort=cohort)
                )
        seats = [
            Seat(f"member-{i}", plan, folder)
            for i, (plan, folder, done) in enumerate(zip(plans, folders, complete, strict=True)) if not done
        ]  # fmt: skip
        failed = CohortRun.prepare(seats, observer, cohort, stop or Stop()).carry_out(started)
    return [failed.get(folder) for folder in folders]


def _check(configs: Sequence[RunConfig], folders: Sequence[Path]) -> None:
    """Refuse what cannot be one cohort, before anything is read."""
    Team.alone("a cohort")
    if not configs or len(configs) != len(folders):
        raise ConfigError(f"a cohort of {len(configs)} configurations for {len(folders)} folders", mend="one each")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(
            f"two runs of the cohort have one folder: {', '.join(folder.name for folder in folders)}",
            mend="give every configuration another name",
        )
    by_accuracy = [config.name for config in configs if config.train.best_by == "accuracy"]
    if by_accuracy:
        raise ConfigError(
            f"a cohort chooses the best by validation loss, and '{by_accuracy[0]}' asks for train.best_by: accuracy",
            mend="train.best_by=loss, or llm-adapters run for that configuration",
        )
    for option in ALONE:
        asking = [config.name for config in configs if getattr(config.train, option)]
        if asking:
            raise ConfigError(
                f"'{asking[0]}' asks for train.{option}, which a cohort does not have",
                mend=f"train.{option}=false, or llm-adapters run for that configuration",
            )
    alone = [name for config in configs for name in config.train.trackers if name in ("wandb", "mlflow")]
    if alone and len(configs) > 1:
        raise ConfigError(
            f"the tracker '{alone[0]}' keeps one run a process, and a cohort is several in one",
            mend="train.trackers: [tensorboard], or llm-adapters run for each configuration",
        )
    first = configs[0]
    for config in configs[1:]:
        differing = differences(first.model.model_dump(), config.model.model_dump(), "model.")
        if differing:
            field, _, values = differing[0].partition(": ")
            there, _, now = values.removesuffix(" now").partition(" there, ")
            raise ConfigError(
                f"the runs of a cohort share their base, and {field} is {there} in '{first.name}', {now} in "
                f"'{config.name}'",
                mend="the same section 'model' in all configurations; runs on another base in another cohort",
            )


def _plans(configs: Sequence[RunConfig], *, score: bool) -> list[RunPlan]:
    """Everything that is known before weights are loaded; runs that ask the same share the very suites."""
    known: dict[str, Sequence[Suite]] = {}
    plans = []
    for config in configs:
        plan = RunPlan.of(config, score=score)
        asked = [config.data.template, config.seed, config.evaluate.model_dump(mode="json")]
        plans.append(replace(plan, suites=known.setdefault(json.dumps(asked), plan.suites)))
    return plans


def _is_complete(folder: Path, plan: RunPlan) -> bool:
    """Whether the folder holds this very run, complete; another one is refused later."""
    if not (folder / MANIFEST).is_file():
        return False
    return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"] == plan.record)
