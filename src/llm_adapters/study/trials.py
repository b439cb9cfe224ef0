"""A study as it lies in its folder, for whoever reports on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.errors import OutputError
from llm_adapters.study.ledger import Entry, Ledger, State

STUDY, RUNS = "study.yaml", "runs"
"""Names in a study's folder: the study as resolved, and the folder of its runs."""


@dataclass(frozen=True)
class TrialRecord:
    """One run of a study.

    Attributes:
        id: digest of its configuration.
        axes: the label that it has on each axis; an axis that does not apply to it is missing.
        folder: an ordinary run's folder; it may not exist yet.
        status: where it is.
        error: of a failed run.
        seconds: of a run that is done, over all its sessions.
    """

    id: str
    axes: dict[str, str]
    folder: Path
    status: State
    error: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class StudyRecord:
    """A study.

    Attributes:
        name: of the study.
        folder: where it lies.
        axes: the labels of each axis, in the order of the plan.
        trials: the runs of the present plan, in its order.
        settings: the study as resolved.
    """

    name: str
    folder: Path
    axes: dict[str, list[str]]
    trials: list[TrialRecord]
    settings: dict[str, Any]


def described(axes: Mapping[str, str]) -> str:
    """``method=lora seed=0``."""
    return " ".join(f"{axis}={name}" for axis, name in axes.items()) or "the base run"


def read_settings(folder: Path) -> dict[str, Any]:
    """What the study in ``folder`` is, as resolved.

    Raises:
        OutputError: its file is missing or damaged.
    """
    path = folder / STUDY
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or "name" not in settings:
            raise ValueError("it holds no study")
    except (OSError, ValueError, yaml.YAMLError) as failure:
        raise OutputError(
            f"'{path}' cannot be read: {failure}",
            mend="remove it: the command that began the study writes it again, and nothing else is lost",
        ) from failure
    return settings


def read_study(folder: Path) -> StudyRecord:
    """The study in ``folder``, while it runs or after it.

    Raises:
        OutputError: there is none, or its files are damaged.
    """
    with Ledger(folder) as ledger:
        entries = ledger.entries()
    settings = read_settings(folder)
    axes: dict[str, dict[str, None]] = {}
    for entry in entries:
        for axis, label in entry.axes.items():
            axes.setdefault(axis, {})[label] = None
    return StudyRecord(
        settings["name"], folder, {axis: list(labels) for axis, labels in axes.items()},
        [_record(entry, folder) for entry in entries], settings,
    )  # fmt: skip


def _record(entry: Entry, folder: Path) -> TrialRecord:
    return TrialRecord(
        entry.id, dict(entry.axes), folder / RUNS / entry.id, entry.state,
        entry.detail.get("error") if entry.state == "failed" else None,
        entry.detail.get("seconds") if entry.state == "done" else None,
    )  # fmt: skip
