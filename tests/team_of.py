"""Several processes that train together, as torchrun would start them, but forked: torch is imported already."""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import forks
from commands import typed
from forks import forked
from llm_adapters.train import team


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(work: Callable[[int], Any], size: int = 2) -> list[tuple[int, Path]]:
    """Begin ``work(rank)`` in so many processes; gives their ids, and where each leaves its result."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def member(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        team._join.cache_clear()
        (folder / str(rank)).write_bytes(pickle.dumps(work(rank)))

    return [(forked(partial(member, rank)), folder / str(rank)) for rank in range(size)]


def ended(children: list[tuple[int, Path]]) -> list[int]:
    """The exit codes of all, negative for a signal."""
    return [forks.ended(child) for child, _ in children]


def team_of(work: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What ``work(rank)`` gives in each of so many processes that train together."""
    children = started(work, size)
    codes = ended(children)
    assert not any(codes), f"exit codes {codes}"
    return [pickle.loads(path.read_bytes()) for _, path in children]


def commanded(
    place: Path,
    arguments: Sequence[str],
    *,
    until: Callable[[], bool] | None = None,
    to: Sequence[int] = (),
    number: int = signal.SIGTERM,
) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard output and standard error of a command in two processes.

    Args:
        place: the folder that it runs in.
        arguments: what is typed behind ``llm-adapters``.
        until: as soon as this is so, the processes of the ranks ``to`` get the signal ``number``.
    """

    def work(rank: int) -> None:
        out, error = (
            os.open(place / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "error")
        )
        typed(place, arguments, out, error)

    children = started(work)
    while until is not None and not until():
        for child, _ in children:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), (place / "error-0").read_text()
        time.sleep(0.002)
    for rank in to:
        os.kill(children[rank][0], number)
    codes = ended(children)
    said, errors = ([(place / f"{name}-{rank}").read_text() for rank in range(2)] for name in ("out", "error"))
    return codes, said, errors
