"""Progress on the terminal: a bar where there is one, a line now and then where not."""

from __future__ import annotations

import sys
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_QUIET_SECONDS = 15.0  # between two lines in a log file
_RECENT = 50  # advances that tell the pace


class Progress:
    """Watches a run; everything goes to standard error, so that standard output holds the result alone."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr)
        self.bar: Bar | None = None
        self.what, self.total, self.done = "", 0, 0
        self.started = self.said = time.monotonic()
        self.seen: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self.bar is not None:  # something failed half way: give the terminal back
            self.bar.stop()

    def begin(self, what: str, total: int | None) -> None:
        """Something begins that takes ``total`` steps, or an unknown number."""
        self.what, self.total, self.done = what, total or 0, 0
        self.started = self.said = time.monotonic()
        self.seen.clear()
        if self.console.is_terminal:
            count = (MofNCompleteColumn(),) if total else ()
            # The time left is our own: rich forgets a pace of less than a step in half a minute.
            columns = (
                TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn(),
                "{task.fields[left]}{task.fields[note]}",
            )  # fmt: skip
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.bar.add_task(what, total=total, left="", note="")
            self.bar.start()
        else:
            self.console.print(f"{what} …", highlight=False)

    def advance(self, amount: int, note: str = "") -> None:
        """``amount`` steps (or rows) more are done."""
        self.done += amount
        self.seen.append((time.monotonic(), self.done))
        if self.bar is not None:
            left = self._left().removeprefix(", ")
            self.bar.update(self.bar.task_ids[0], advance=amount, left=left and f"{left}  ", note=note)
        elif time.monotonic() - self.said > _QUIET_SECONDS:
            self.said = time.monotonic()
            where = f"{self.done}/{self.total}" if self.total else f"{self.done}"
            self.console.print(
                f"  {where} after {self.said - self.started:.0f} s{self._left()}  {note}", highlight=False
            )

    def _left(self) -> str:
        """How long it will still take at the pace of the recent past; what an earlier session did is no pace."""
        (then, before), (now, done) = self.seen[0], self.seen[-1]
        if not self.total or done == before:
            return ""
        return f", {duration((now - then) / (done - before) * (self.total - done))} left"

    def note(self, text: str) -> None:
        """Something worth knowing, such as damage that was found."""
        self.console.print(text, highlight=False, markup=False)

    def end(self, result: str) -> None:
        """What began is done."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.console.print(
            f"{self.what}: {result} [{time.monotonic() - self.started:.1f} s]", highlight=False, markup=False
        )


def duration(seconds: float) -> str:
    """``1 h 2 min``, ``2 min 5 s`` or ``5.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
