"""Being asked to stop: SIGTERM and the first Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llm_adapters.errors import Stopped
from llm_adapters.train.team import Team


class Stop:
    """Within ``with stop:`` the first SIGTERM or Ctrl-C stops at once, within ``with stop.deferred():`` when it suits.

    A second Ctrl-C is a ``KeyboardInterrupt`` wherever it comes, except in one of several processes: their launcher
    hands the first one on, so that it comes twice. Outside the main thread, where Python handles no
    signals, nothing changes, and a signal that is ignored (Ctrl-C, for a job in the background) stays so.

    Attributes:
        asked: whether somebody has asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_failure: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only take note; whoever runs inside looks at ``asked`` and stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT and Team.join().size == 1:
                raise KeyboardInterrupt
            return
        self.asked = True
        if not self._deferred:
            raise Stopped("stopped")
