"""Experiment trackers: TensorBoard, W&B, Trackio, MLflow get the recipe and the rows of ``metrics.jsonl``.

They are accelerate's, with what it takes that a training that goes on stays one run.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState, tracking

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.store import write_synced
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import MissingExtraError

FOLDER = "trackers"
"""Where those that can write locally do so, in the run's folder; ``NAME-run`` there names the run of a tracker."""

Plain = bool | int | float | str


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        MissingExtraError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtraError(name, "trackers", f"train.trackers: {name}")


def recipe_of(settings: TrainSection, adapter: Adapter, learning_rate: float, seed: int) -> dict[str, Plain]:
    """What a training is, for trackers: ``seed``, ``train.batch_size``, ``lora.rank``, …

    Lists and nested values are JSON text; what is empty is left out.
    """
    fields: dict[str, Any] = {
        "seed": seed,
        "learning_rate": learning_rate,
        "parameters.trained": adapter.count(),
        "adapter": ", ".join(method.name() for method in adapter.methods),
    }
    for (key, _), method in zip(adapter.named_children(), adapter.methods, strict=True):
        fields |= {f"{key}.{name}": value for name, value in method.model_dump(mode="json").items()}
    train = settings.model_dump(mode="json", exclude={"learning_rate", "trackers"})
    fields |= {f"train.{name}": value for name, value in train.items()}
    return {
        name: value if isinstance(value, Plain) else json.dumps(value)
        for name, value in fields.items()
        if value is not None
    }


class Trackers:
    """The trackers of one training. A tracker that fails is told of once and dropped; the training goes on.

    An interrupted training goes on in the same run of each: the same TensorBoard folder, where steps that are done
    again replace those of before; the same W&B, Trackio and MLflow run, where MLflow and Trackio hold such steps twice,
    with the same values, and W&B as they were before: it takes nothing more for a step of an earlier session, so a
    validation that a stop broke off is in ``metrics.jsonl`` and not there. A run that was deleted in MLflow or Trackio
    is begun anew.

    Args:
        names: of the trackers.
        folder: the run's folder.
        note: told which tracker failed.
        recipe: see :func:`recipe_of`; given to each at every start, which a run holds once all the same.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, note: Callable[[str], None], recipe: Mapping[str, Plain]
    ) -> None:
        self.names, self.folder, self.note, self.recipe = names, folder, note, recipe
        self._running: dict[str, Any] = {}

    def start(self, step: int) -> None:
        """Begin, or go on after ``step``."""
        for name in self.names:
            self._try(name, partial(self._start, name, step))

    def log(self, row: Mapping[str, float]) -> None:
        """Send a row of ``metrics.jsonl``."""
        values = {key: value for key, value in row.items() if key != "step"}
        for name, tracker in list(self._running.items()):
            self._try(name, partial(tracker.log, values, step=int(row["step"])))

    def finish(self) -> None:
        """Write what is left."""
        for name, tracker in list(self._running.items()):
            self._try(name, tracker.finish)

    def _start(self, name: str, step: int) -> None:
        tracker = made(name, self.folder, step)
        tracker.start()
        self._running[name] = tracker
        tracker.store_init_configuration(dict(self.recipe))

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as failure:  # no tracker may end a training
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            self.note(f"the tracker '{name}' failed and gets nothing more: {reason}")
            if name in self._running:
                with suppress(Exception):  # left open, it would keep the next training of this process from its own
                    self._running.pop(name).finish()


def made(name: str, folder: Path, step: int) -> Any:
    """accelerate's tracker for a run's folder, that goes on after ``step``; not started."""
    PartialState()  # without it accelerate's own log refuses, and W&B and Trackio fail with it
    where = folder.resolve()
    local = where / FOLDER
    if name == "tensorboard":
        return _TensorBoard(name, local, purge_step=step + 1)
    project, run = where.parent.name or "runs", where.name
    local.mkdir(exist_ok=True)
    file = local / f"{name}-run"
    if name == "mlflow":
        return _MLflow(project, run, file)
    known = _read(file)
    identity = known or (run if name == "trackio" else secrets.token_hex(8))
    _write(file, identity)
    if name == "trackio":  # by its name, which a training in another folder, or one before --force, may have had
        return _Trackio(project, name=identity, resume="allow" if known else "never")
    return tracking.WandBTracker(project, name=run, id=identity, resume="allow", dir=str(local))


class _TensorBoard(tracking.TensorBoardTracker):
    """The recipe beside the metrics; accelerate makes two new folders for it, which TensorBoard shows as a run."""

    def store_init_configuration(self, values: dict[str, Plain]) -> None:
        from torch.utils.tensorboard.summary import hparams

        # Of the three summaries the session alone: the first would say for all runs beside this one which fields they
        # have, the last that it has ended well.
        self.writer.file_writer.add_summary(hparams(values, {})[1])
        self.writer.flush()


class _Trackio(tracking.TrackioTracker):
    """accelerate writes its option ``allow_val_change`` among the values, and into whichever run began last."""

    def store_init_configuration(self, values: dict[str, Plain]) -> None:
        self.run.config.update(values)


class _MLflow(tracking.MLflowTracker):
    """A run whose id lies in ``file``, so that it is gone on with. Without a server of the user's it lies beside it."""

    def __init__(self, project: str, run: str, file: Path) -> None:
        import mlflow

        given = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(given or f"sqlite:///{file.with_name('mlflow.db')}")
        if not given:  # mlflow has set it, and the next training of this process would take it for the user's
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        known = _read(file)
        known = known if known and _is_in_mlflow(known) else None
        super().__init__(project, run_id=known, run_name=None if known else run)
        self.file = file

    def start(self) -> None:
        super().start()
        _write(self.file, self.active_run.info.run_id)

    def store_init_configuration(self, values: dict[str, Plain]) -> None:
        """Those that the run lacks: MLflow refuses another value, as of an option that does not change the result."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        known = self.active_run.data.params
        super().store_init_configuration(
            {key: str(value)[:MAX_PARAM_VAL_LENGTH] for key, value in values.items() if key not in known}
        )


def _is_in_mlflow(identity: str) -> bool:
    """Whether a run is there, and not in the bin."""
    import mlflow

    try:
        return bool(mlflow.get_run(identity).info.lifecycle_stage == "active")
    except mlflow.exceptions.MlflowException as failure:
        if failure.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _write(file: Path, text: str) -> None:
    """Write a file so that it is there completely or not at all."""
    fresh = file.with_name(f".{file.name}-{os.getpid()}")
    write_synced(fresh, text.encode())
    os.replace(fresh, file)
