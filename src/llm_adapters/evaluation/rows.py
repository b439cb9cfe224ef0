"""Prediction files: one JSON row a prediction, appended as it is made, so that a killed evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_adapters.errors import DataError, OutputError, disk_mend

Row = dict[str, Any]
"""``adapter`` (None: the base), ``benchmark``, ``protocol``, ``row``, ``question``, ``gold``, ``completion``,
``answer``, ``status``, ``tokens``, ``stopped``, ``leaked`` (whether the training data give the row away; None: not
known), and under the protocol ``likelihood`` ``log_likelihoods``, one an option."""


def read_rows(path: Path, *, mend: bool = False) -> list[Row]:
    """The rows of a prediction file; a last line cut off by a kill is left out.

    Args:
        path: of the file; where there is none, there are no rows.
        mend: leave out other damaged lines too, because their rows will be asked again.

    Raises:
        DataError: another line is damaged.
    """
    rows: list[Row] = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            if number < len(lines) and not mend:
                raise DataError(
                    f"{path}: line {number} is damaged", mend="the command that wrote it asks its row again"
                ) from None
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class RowWriter:
    """Appends rows to a file, each flushed at once; :meth:`finish` puts them in their final order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_rows(path, mend=True)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, self.rows)  # drops a line that was cut off, so that the next one does not continue it
            self._file = path.open("a", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Append one row."""
        self.rows.append(row)
        with _writing(self.path):
            self._file.write(_line(row))
            self._file.flush()

    def finish(self, adapters: Sequence[str | None]) -> list[Row]:
        """Sort by adapter, then row: the same file whatever the order in which the rows were finished."""
        place = {name: i for i, name in enumerate(adapters)}
        self.rows.sort(key=lambda row: (place.get(row["adapter"], len(place)), row["row"]))
        with _writing(self.path):
            self._file.close()
            _replace(self.path, self.rows)
        return self.rows


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        raise OutputError(
            f"'{path}' cannot be written: {failure.strerror or failure}; the rows written before it are kept",
            mend=f"{disk_mend(failure)}; the same command then asks only what is missing",
        ) from failure


def _replace(path: Path, rows: Sequence[Row]) -> None:
    replace_whole(path, "".join(map(_line, rows)))


def replace_whole(path: Path, text: str) -> None:
    """Write a file so that after a kill or a power cut it is the new one or the old one."""
    fresh = path.with_name(f".{path.name}-new")  # one name: what a kill leaves of it is replaced
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
