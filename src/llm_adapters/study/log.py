"""An observer that writes lines into a file."""

from __future__ import annotations

import time
from typing import TextIO

_QUIET_SECONDS = 30.0  # between two lines about one thing


class Log:
    """Writes what a run tells, each line with the time."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.what, self.total, self.done, self.said = "", 0, 0, 0.0

    def begin(self, what: str, total: int | None) -> None:
        """Something begins."""
        self.what, self.total, self.done, self.said = what, total or 0, 0, time.monotonic()
        self._line(f"{what} …")

    def advance(self, amount: int, note: str = "") -> None:
        """It has come on."""
        self.done += amount
        if time.monotonic() - self.said > _QUIET_SECONDS:
            self.said = time.monotonic()
            self._line(f"  {self.done}{f'/{self.total}' if self.total else ''}  {note}")

    def end(self, result: str) -> None:
        """It is done."""
        self._line(f"{self.what}: {result}")

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._line(text)

    def _line(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self.file, flush=True)
