"""Several processes that train together, as torchrun would start them, but forked: torch is imported already."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_adapters.train import team


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(work: Callable[[int], Any], size: int = 2) -> list[tuple[int, Path]]:
    """Begin ``work(rank)`` in so many processes; gives their ids, and where each leaves its result."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                team._join.cache_clear()
                found = work(rank)
                (folder / str(rank)).write_bytes(pickle.dumps(found))
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append((child, folder / str(rank)))
    return children


def ended(children: list[tuple[int, Path]]) -> list[int]:
    """The exit codes of all, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]


def team_of(work: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What ``work(rank)`` gives in each of so many processes that train together."""
    children = started(work, size)
    codes = ended(children)
    assert not any(codes), f"exit codes {codes}"
    return [pickle.loads(path.read_bytes()) for _, path in children]
