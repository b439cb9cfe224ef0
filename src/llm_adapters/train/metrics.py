"""``metrics.jsonl``: one row a step and one a validation, in the order in which they happened."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import BinaryIO

from llm_adapters.train.disk import writing

Metrics = dict[str, float]


class RecentRate:
    """Tokens a second over the last steps, whatever was before them: an earlier session, a slow beginning."""

    def __init__(self, steps: int = 10) -> None:
        self._rows: deque[tuple[float, float]] = deque(maxlen=steps + 1)

    def after(self, row: Metrics) -> float:
        """The rate after one more step; the average so far where there is only one."""
        self._rows.append((row["seconds"], row["tokens"]))
        (then, before), (now, tokens) = self._rows[0], self._rows[-1]
        return (tokens - before) / (now - then) if now > then else row["tokens_per_second"]


class MetricsLog:
    """Appends rows; rows of steps that will be done again are cut first.

    Attributes:
        rows: all rows, those of earlier sessions included.
    """

    def __init__(self, path: Path | None, step: int, *, unvalidated: bool = False) -> None:
        """Open ``path`` with the rows up to ``step``; a line that was being written at a kill is no row.

        Args:
            path: None writes nothing: for a process that does not lead.
            step: the last that is not done again.
            unvalidated: whether its validation is.
        """
        self.rows: list[Metrics] = []
        self.path = Path(os.devnull) if path is None else path
        self._file: BinaryIO | None = None
        if path is not None:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = self._read(step, unvalidated=unvalidated)
                self._file = path.open("ab", buffering=0)  # nothing is left to be written on closing
                self._file.truncate(kept)

    def _read(self, step: int, *, unvalidated: bool) -> int:
        """Read the rows up to ``step``; gives the number of bytes that they take."""
        length = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            again = unvalidated and isinstance(row, dict) and row.get("step") == step and "validation_loss" in row
            if not isinstance(row, dict) or row.get("step", step + 1) > step or again:
                break
            self.rows.append(row)
            length += len(line)
        return length

    def add(self, row: Metrics) -> None:
        """Append a row.

        Raises:
            OutputError: it cannot be written.
        """
        self.rows.append(row)
        data = (json.dumps(row) + "\n").encode()
        with writing(self.path):
            while data and self._file is not None:  # a write may take a part: on a disk that is nearly full, for one
                data = data[self._file.write(data) :]

    def sync(self) -> None:
        """Wait until all rows are on disk: what a checkpoint covers must not be lost when it is kept."""
        if self._file is not None:
            with writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def losses(self) -> list[float]:
        """The training loss of every step."""
        return [row["loss"] for row in self.rows if "loss" in row]
