"""An observer of runs for tests."""

from __future__ import annotations

from llm_adapters.errors import Stopped


class Watching:
    """An observer that remembers, and may interrupt what begins."""

    def __init__(self, interrupt: str = "nothing", after: int = 0) -> None:
        self.begun: list[str] = []
        self.notes: list[str] = []
        self.interrupt, self.left = interrupt, after

    def begin(self, what: str, total: int | None) -> None:  # noqa: ARG002 – as the protocol says
        self.begun.append(what)
        if self.interrupt in what and self.left == 0:
            raise Stopped("here")

    def advance(self, amount: int, note: str = "") -> None:  # noqa: ARG002
        if self.interrupt in self.begun[-1]:
            self.left -= amount
            if self.left <= 0:
                raise Stopped("here")

    def end(self, result: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
