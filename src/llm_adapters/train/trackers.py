"""Experiment trackers: TensorBoard, W&B, Trackio, MLflow get the rows of ``metrics.jsonl``, through accelerate."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking

from llm_adapters.errors import MissingExtraError

FOLDER = "trackers"
"""Where those that can write locally do so, in the run's folder."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        MissingExtraError: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtraError(name, "trackers", f"train.trackers: {name}")


class Trackers:
    """The trackers of one training. A tracker that fails is told of once and dropped; the training goes on.

    An interrupted training goes on in the same TensorBoard folder, where steps that are done again replace those of
    before, in the same W&B and Trackio run (by its id or name, made from the folder), and in a new run of the same
    MLflow experiment.
    """

    def __init__(self, names: Sequence[str], folder: Path, note: Callable[[str], None]) -> None:
        self.names, self.folder, self.note = names, folder, note
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

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as failure:  # no tracker may end a training
            self._running.pop(name, None)
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            self.note(f"the tracker '{name}' failed and gets nothing more: {reason}")


def made(name: str, folder: Path, step: int) -> Any:
    """accelerate's tracker for a run's folder, that goes on after ``step``; not started."""
    where = folder.resolve()
    local = where / FOLDER
    if name == "tensorboard":
        return tracking.TensorBoardTracker(name, local, purge_step=step + 1)
    project, run = where.parent.name or "runs", where.name
    local.mkdir(exist_ok=True)
    if name == "wandb":
        identity = hashlib.sha256(str(where).encode()).hexdigest()[:16]
        return tracking.WandBTracker(project, name=run, id=identity, resume="allow", dir=str(local))
    if name == "trackio":
        return tracking.TrackioTracker(project, name=run, resume="allow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{local / 'mlflow.db'}")
    return tracking.MLflowTracker(project, run_name=run)
