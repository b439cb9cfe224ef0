"""Commands in forked children, which have torch imported already."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import llm_adapters.report
import llm_adapters.runs.evaluation  # noqa: F401 – once here, not in every child
from forks import ended, forked
from llm_adapters.cli import main


def typed(place: Path, arguments: Sequence[str], out: int, error: int) -> None:
    """In a child of its own: what ``llm-adapters`` with these arguments does in ``place``, into open files."""
    os.chdir(place)
    os.dup2(out, 1)
    os.dup2(error, 2)
    sys.stdout, sys.stderr = (open(n, "w", 1, closefd=False) for n in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    sys.argv = ["llm-adapters", *arguments]
    main()


def command(
    place: Path, *arguments: str, until: Callable[[], bool] | None = None, number: int = signal.SIGTERM
) -> tuple[int, str]:
    """Exit code and standard error of a command in ``place``, which gets a signal as soon as ``until``."""
    with tempfile.TemporaryFile() as said:

        def told() -> str:
            said.seek(0)
            return said.read().decode()

        child = forked(lambda: typed(place, arguments, os.open(os.devnull, os.O_WRONLY), said.fileno()))
        if until is not None:
            while not until():
                assert os.waitpid(child, os.WNOHANG) == (0, 0), told()
                time.sleep(0.002)
            os.kill(child, number)
        return ended(child), told()
