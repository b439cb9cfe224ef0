"""Children that are killed at a moment that can be counted."""

import os
import signal
from collections.abc import Callable
from typing import Any

from forks import ended, forked


def killed_at_call(count: int, work: Callable[[], object]) -> int:
    """Work in a child until the disk has been asked ``count`` times to keep or name something, and be killed there."""

    def doomed() -> None:
        left = count

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counting

        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        work()

    return ended(forked(doomed))
