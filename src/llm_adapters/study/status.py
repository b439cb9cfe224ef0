"""How far a study is: counts, time left, the best run so far, what is running, what failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llm_adapters.runs.names import TRAINING
from llm_adapters.study.ledger import Entry, Ledger, State
from llm_adapters.study.trials import RUNS, read_settings


@dataclass(frozen=True)
class Status:
    """A study at one moment.

    Attributes:
        name: of the study.
        objective: what its runs are judged by.
        counts: runs by state.
        running: each with what it does now.
        failed: the failed runs.
        best: the best run so far, with its score.
        seconds_left: as long as the finished runs took on average, so many at once as now; None before the first.
    """

    name: str
    objective: str
    counts: dict[State, int]
    running: list[tuple[Entry, str]]
    failed: list[Entry]
    best: tuple[Entry, float] | None
    seconds_left: float | None


def read_status(folder: Path) -> Status:
    """The status of a study, while it runs or after it.

    Raises:
        OutputError: ``folder`` holds no study.
    """
    with Ledger(folder) as ledger:
        entries = ledger.entries()
    settings = {"objective": "accuracy", **read_settings(folder)}
    counts = Counter(entry.state for entry in entries)
    if settings.get("search"):  # its runs are proposed one after the other
        counts["waiting"] += max(0, settings["search"]["runs"] - len(entries))
    best: tuple[Entry, float] | None = None
    for entry in entries:
        score = entry.detail.get("score") if entry.state == "done" else None
        if score is not None and (best is None or _is_better(score, best[1], settings["objective"])):
            best = entry, score
    running = [entry for entry in entries if entry.state == "running"]
    took = [entry.detail["seconds"] for entry in entries if entry.state == "done" and "seconds" in entry.detail]
    # A run under way is half done, on average. A cohort's runs all take as long as the cohort, and count as many.
    left = (counts["waiting"] + counts["running"] / 2) * sum(took) / len(took) / max(1, len(running)) if took else None
    states: tuple[State, ...] = ("done", "running", "waiting", "failed")
    return Status(
        settings["name"], settings["objective"], {state: counts[state] for state in states},
        [(entry, _doing(folder / RUNS / entry.id)) for entry in running],
        [entry for entry in entries if entry.state == "failed"], best, left,
    )  # fmt: skip


def _is_better(one: float, other: float, objective: str) -> bool:
    """Whether a score beats another one: accuracies are high, losses low."""
    return one > other if objective == "accuracy" else one < other


def _doing(run: Path) -> str:
    """What a run does now, from what lies in its folder."""
    if (run / TRAINING).is_file():
        rows = sum(_lines(path) for path in run.glob("eval/*.jsonl"))
        return f"evaluating, {rows} rows with the base's"
    steps = _lines(run / "metrics.jsonl")
    return f"training, step {steps}" if steps else "before training"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
