"""How every row came out, a letter a row: enough to pool seeds and to pair adapters without reading predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_adapters.evaluation.rows import Row, read_rows

_LETTER = {"correct": "c", "wrong": "w", "unparsed": "u"}


@dataclass(frozen=True)
class Outcomes:
    """One adapter on one set under one protocol.

    Attributes:
        adapter: its name; None is the bare base.
        benchmark: name of the set.
        protocol: how it was asked and read.
        questions: digest of the rows' numbers, questions and gold answers: where it is the same, the letters of two
            outcomes belong together place by place.
        statuses: c (correct), w (wrong) or u (unparsed), a letter a row by ascending row number.
        leaked: 1 where the training data give the row away, else 0; None where those are not known.
    """

    adapter: str | None
    benchmark: str
    protocol: str
    questions: str
    statuses: str
    leaked: str | None

    def right(self) -> NDArray[np.float64]:
        """1 for every row answered right, else 0: (N,)."""
        return (np.frombuffer(self.statuses.encode("ascii"), dtype=np.uint8) == ord("c")).astype(np.float64)

    def clean(self) -> NDArray[np.bool_] | None:
        """Which rows the training data do not give away, (N,); None where that is not known."""
        return None if self.leaked is None else np.frombuffer(self.leaked.encode("ascii"), dtype=np.uint8) == ord("0")


def outcomes(rows: Sequence[Row]) -> list[Outcomes]:
    """The outcomes of prediction rows, one of each adapter, set and protocol."""
    groups: dict[tuple[str | None, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["adapter"], row["benchmark"], row.get("protocol", "standard")), []).append(row)
    return [_outcomes(key, sorted(group, key=lambda row: row["row"])) for key, group in groups.items()]


def _outcomes(key: tuple[str | None, str, str], rows: Sequence[Row]) -> Outcomes:
    asked = json.dumps([[row["row"], row.get("question", ""), row.get("gold", "")] for row in rows])
    known = all(row.get("leaked") is not None for row in rows)
    return Outcomes(
        *key, hashlib.sha256(asked.encode()).hexdigest()[:16], "".join(_LETTER[row["status"]] for row in rows),
        "".join(str(int(row["leaked"])) for row in rows) if known else None,
    )  # fmt: skip


def predictions(folder: Path) -> list[Row]:
    """All rows of the prediction files in ``folder``, a run's ``eval``."""
    return [row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]


def records(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of the prediction files in ``folder`` as they stand in ``summary.json``."""
    return [asdict(each) for each in outcomes(predictions(folder))]


def read_outcomes(folder: Path, summary: dict[str, Any]) -> list[Outcomes]:
    """The outcomes in a ``summary.json``, or, of one that has none, in the prediction files beside it."""
    if "outcomes" in summary:
        return [Outcomes(**record) for record in summary["outcomes"]]
    return outcomes(predictions(folder))
