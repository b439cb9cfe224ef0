"""From the rows of prediction files to accuracies with intervals, and their means over sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_adapters.evaluation.outcomes import records
from llm_adapters.evaluation.rows import Row, replace_whole
from llm_adapters.evaluation.statistics import Interval, macro_mean, wilson


@dataclass(frozen=True)
class Score:
    """Accuracy on one set, with its 95 % Wilson interval; unparsed rows count as not correct.

    Attributes:
        adapter: its name; None is the bare base.
        benchmark: name of the set.
        protocol: how it was asked and read.
        total: rows.
        correct: rows answered right.
        unparsed: rows from which no answer could be read.
        cut: rows whose completion reached the limit of tokens.
        accuracy: correct / total, in [0, 1].
        low, high: of the interval.
        clean_total: rows that the training data do not give away; None where those are not known.
        clean_correct: of them, rows answered right.
    """

    adapter: str | None
    benchmark: str
    protocol: str
    total: int
    correct: int
    unparsed: int
    cut: int
    accuracy: float
    low: float
    high: float
    clean_total: int | None = None
    clean_correct: int | None = None


@dataclass(frozen=True)
class Mean:
    """Mean accuracy over sets with equal weight; the 95 % interval answers for the choice of rows, not of sets."""

    adapter: str | None
    protocol: str
    sets: int
    accuracy: float
    low: float
    high: float


def score(rows: Sequence[Row], benchmark: str, protocol: str, adapter: str | None) -> Score:
    """The score of one adapter on one set from the rows of its prediction file."""
    own = [row for row in rows if row["adapter"] == adapter]
    counts = Counter(row["status"] for row in own)
    total, correct = len(own), counts["correct"]
    clean = [row["status"] == "correct" for row in own if row.get("leaked") is False]
    known = bool(own) and all(row.get("leaked") is not None for row in own)
    return Score(
        adapter, benchmark, protocol, total, correct, counts["unparsed"], sum(not row["stopped"] for row in own),
        correct / total, *wilson(correct, total),
        clean_total=len(clean) if known else None, clean_correct=sum(clean) if known else None,
    )  # fmt: skip


def means(files: Sequence[Sequence[Row]]) -> list[Mean]:
    """The mean of every adapter under every protocol with more than one set, from the rows of all sets."""
    values: dict[tuple[str | None, str], list[list[bool]]] = {}
    for rows in files:
        of: dict[tuple[str | None, str], list[bool]] = {}
        for row in rows:
            of.setdefault((row["adapter"], row["protocol"]), []).append(row["status"] == "correct")
        for key, right in of.items():
            values.setdefault(key, []).append(right)
    return [
        Mean(adapter, protocol, len(sets), estimate.value, *estimate.interval)
        for (adapter, protocol), sets in values.items()
        if len(sets) > 1
        for estimate in [macro_mean(sets)]
    ]


def clean_interval(score: Score) -> tuple[float, Interval] | None:
    """Accuracy and 95 % Wilson interval on the clean rows; None without any."""
    if not score.clean_total or score.clean_correct is None:
        return None
    return score.clean_correct / score.clean_total, wilson(score.clean_correct, score.clean_total)


def write_summary(scores: Sequence[Score], averages: Sequence[Mean], path: Path) -> None:
    """``eval/summary.json``: ``scores``, one record a set, adapter and protocol, ``means`` over sets, and ``outcomes``,
    a letter a row of the prediction files beside it."""
    record = {
        "scores": [asdict(each) for each in scores],
        "means": [asdict(each) for each in averages],
        "outcomes": records(path.parent),
    }
    replace_whole(path, json.dumps(record, indent=2) + "\n")
