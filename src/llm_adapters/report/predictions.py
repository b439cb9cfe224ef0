"""Single predictions for the page: question, base's answer, tuned answer, of as many runs as a limit lets in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_adapters.evaluation.outcomes import predictions
from llm_adapters.evaluation.rows import Row
from llm_adapters.report.collect import Run

LIMIT = 4 * 2**20
"""Characters of JSON that all predictions of a page may take."""


@dataclass
class Drill:
    """What the page holds.

    Attributes:
        asked: of every question: set, protocol, row, question, gold answer, the base's completion, answer, status.
        runs: by the run's id, of every prediction: place in ``asked``, completion, answer, status, leaked.
        left_out: runs that did not fit.
    """

    asked: list[list[Any]] = field(default_factory=list)
    runs: dict[str, list[list[Any]]] = field(default_factory=dict)
    left_out: int = 0


def drill_down(runs: Sequence[Run], *, limit: int = LIMIT) -> Drill:
    """The predictions of runs in that order, until ``limit`` is reached; each question is held once."""
    drill, places, used = Drill(), dict[tuple[Any, ...], int](), 0
    bases: dict[Path, dict[tuple[str, str, int], Row]] = {}
    for i, run in enumerate(runs):
        folder = run.trial.folder / "eval"
        if sum(path.stat().st_size for path in folder.glob("*.jsonl")) / 4 + used > limit:  # it will not fit anyway
            drill.left_out = len(runs) - i
            break
        rows = predictions(folder)
        if run.base_folder not in bases:
            beside = rows if run.base_folder == folder else predictions(run.base_folder)
            bases[run.base_folder] = {_key(row): row for row in beside if row["adapter"] is None}
        fresh: list[list[Any]] = []
        own = []
        for row in (row for row in rows if row["adapter"] is not None):
            base = bases[run.base_folder].get(_key(row), {})
            asked = [
                *_key(row),
                row["question"],
                row["gold"],
                *(base.get(k) for k in ("completion", "answer", "status")),
            ]
            name = tuple(asked)
            if name not in places:
                places[name] = len(drill.asked) + len(fresh)
                fresh.append(asked)
            own.append([places[name], *(row[k] for k in ("completion", "answer", "status")), row.get("leaked")])
        needed = len(json.dumps([fresh, own], ensure_ascii=False))
        if used + needed > limit:
            drill.left_out = len(runs) - i
            break
        used += needed
        drill.asked += fresh
        drill.runs[run.trial.id] = own
        if run.base_folder == folder:
            del bases[folder]
    return drill


def _key(row: Row) -> tuple[str, str, int]:
    return row["benchmark"], row["protocol"], row["row"]
