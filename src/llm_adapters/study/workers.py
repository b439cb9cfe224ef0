"""Who works on a study: every worker holds a lock as long as it lives, and a kill lets go of it."""

from __future__ import annotations

import fcntl
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = "workers"


@contextmanager
def working(folder: Path) -> Iterator[str]:
    """A new worker of the study in ``folder``; gives its name."""
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    path = _lock(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path)
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path) -> int:
    """A lock on the file that lies at ``path``: who clears up may have removed one that was not locked yet."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        os.close(handle)


def is_alive(folder: Path, name: str) -> bool:
    """Whether that worker still holds its lock."""
    try:
        handle = os.open(_lock(folder, name), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared: two who look at once do not take each other for the worker.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def clear_dead(folder: Path) -> None:
    """Remove what killed workers have left."""
    for path in (folder / _FOLDER).glob("*.lock"):
        if not is_alive(folder, path.stem):
            with suppress(FileNotFoundError):
                path.unlink()


def _lock(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}.lock"
