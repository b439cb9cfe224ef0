"""What a study has found so far, in one pass over its runs: manifests and summaries, no predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters.errors import DataError
from llm_adapters.evaluation.outcomes import Outcomes, read_outcomes
from llm_adapters.evaluation.score import Score
from llm_adapters.runs.names import MANIFEST
from llm_adapters.study.trials import StudyRecord, TrialRecord

_ANEW = "remove the run's folder: the study carries it out again"

SEED = "seed"
"""The axis that is pooled over."""


@dataclass(frozen=True)
class Evaluated:
    """What lies in an ``eval`` folder, of the base or of the adapters."""

    scores: Sequence[Score]
    outcomes: Sequence[Outcomes]


@dataclass(frozen=True)
class Run:
    """A finished trial.

    Attributes:
        trial: of the study.
        manifest: of its run.
        tuned: how the adapter did.
        base: how its base did, in this run or in the study's ``base`` folder.
        base_folder: the ``eval`` folder that holds the base's predictions.
        adapter_bytes: size of the saved adapter; None if it is not there any more.
    """

    trial: TrialRecord
    manifest: dict[str, Any]
    tuned: Evaluated
    base: Evaluated
    base_folder: Path
    adapter_bytes: int | None

    @property
    def config(self) -> dict[str, Any]:
        """As resolved."""
        return dict(self.manifest["config"])

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """Of its methods: one, or those that are composed."""
        adapter = self.config["adapter"]
        return list(adapter) if isinstance(adapter, list) else [adapter]

    @property
    def method(self) -> str:
        """Its method, or its methods with a plus between."""
        return " + ".join(recipe["method"] for recipe in self.recipes)

    @property
    def model(self) -> str:
        """Source of its base."""
        return without_path(self.config["model"]["source"])

    @property
    def data(self) -> str:
        """What it was trained on."""
        data = self.config["data"]
        held_out = data.get("validation") if isinstance(data.get("validation"), int) else 0
        return without_path(data["train"]) + (f", {data['size'] - held_out:,} rows" if data["size"] else "")

    @property
    def seed(self) -> str:
        """Of the run."""
        return str(self.config["seed"])


@dataclass(frozen=True)
class Collected:
    """A study's finished runs, and the trials that have none."""

    study: StudyRecord
    runs: Sequence[Run]
    unfinished: Sequence[TrialRecord]


def without_path(source: str) -> str:
    """A hub id or a name as it is; of an absolute path the last part, for the rest is private to its machine."""
    return Path(source).name if Path(source).expanduser().is_absolute() else str(source)


def collect(study: StudyRecord) -> Collected:
    """Read the manifest and the summary of every finished trial.

    Raises:
        DataError: no trial has finished, or a summary is damaged.
    """
    summaries: dict[Path, Evaluated] = {}
    needed = [MANIFEST, *(["eval/summary.json"] if study.settings.get("evaluate") else [])]
    finished = [
        trial
        for trial in study.trials
        if trial.status == "done" and all((trial.folder / name).is_file() for name in needed)
    ]
    if not finished:
        raise DataError(f"no trial of '{study.folder}' has finished", mend="llm-adapters study goes on with it")
    names = {trial.id for trial in finished}
    runs = []
    for trial in finished:
        try:
            runs.append(_run(study, trial, summaries))
        except (KeyError, TypeError, AttributeError) as failure:
            raise DataError(f"a file of the run '{trial.folder}' is damaged ({failure!r})", mend=_ANEW) from failure
    return Collected(study, runs, [trial for trial in study.trials if trial.id not in names])


def _run(study: StudyRecord, trial: TrialRecord, summaries: dict[Path, Evaluated]) -> Run:
    folder, shared = trial.folder / "eval", study.folder / "base" / "eval"
    own = _evaluated(folder, summaries)
    tuned = Evaluated(
        [score for score in own.scores if score.adapter is not None],
        [each for each in own.outcomes if each.adapter is not None],
    )
    base_folder = folder if any(score.adapter is None for score in own.scores) else shared
    beside = _evaluated(base_folder, summaries)
    base = Evaluated(
        [score for score in beside.scores if score.adapter is None],
        [each for each in beside.outcomes if each.adapter is None],
    )
    saved, manifest = trial.folder / "adapter" / "adapter.safetensors", _read(trial.folder / MANIFEST)
    for part in ("config", "training", "data", "versions", "hardware"):
        manifest[part]  # that it is there
    return Run(
        trial, manifest, tuned, base, base_folder,
        saved.stat().st_size if saved.is_file() else None,
    )  # fmt: skip


def _evaluated(folder: Path, known: dict[Path, Evaluated]) -> Evaluated:
    if folder not in known:
        path = folder / "summary.json"
        summary = _read(path) if path.is_file() else {"scores": [], "outcomes": []}
        scores = [Score(**record) for record in summary["scores"]]
        known[folder] = Evaluated(scores, read_outcomes(folder, summary))
    return known[folder]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as failure:
        raise DataError(f"'{path}' is damaged: {failure}", mend=_ANEW) from failure
