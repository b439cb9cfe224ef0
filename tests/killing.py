"""Children that are killed at a moment that can be counted."""

import os
import signal
from collections.abc import Callable
from typing import Any


def forked(work: Callable[[], object]) -> int:
    """Run in a child that has everything imported already; gives its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # the child must not go on with the parent's tests
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    """Wait for a child; gives its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
