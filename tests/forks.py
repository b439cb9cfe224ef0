"""Children of the tests' own process: what is imported stays imported, so that they begin at once."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable

PATIENCE = 300  # seconds after which a child says where it stands and is ended: a test fails, and does not hang


def forked(work: Callable[[], object]) -> int:
    """Work in a child, which then ends and does not go on with the tests; gives its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            faulthandler.dump_traceback_later(PATIENCE - 1, file=2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            except (OSError, ValueError):
                code = code or 1
            finally:
                os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; gives its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
