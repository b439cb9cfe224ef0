"""The folder of a run: made without overwriting anything, complete when its manifest is there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_adapters.errors import OutputError
from llm_adapters.runs.names import MANIFEST, RECORD, TRAINING
from llm_adapters.train.failure import FAILED

_FILES = {
    "begun.json", "config.yaml", "metrics.jsonl", "report.md", "report.html", FAILED, MANIFEST, RECORD, TRAINING,
}  # fmt: skip
_FOLDERS = {"adapter", "checkpoints", "eval", "trackers"}


def fresh_folder(folder: Path, *, force: bool) -> Path:
    """An empty folder for a run.

    ``force`` removes what an earlier run left there, and nothing else.

    Raises:
        OutputError: the path is taken.
    """
    taken = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    if taken and not force:
        raise OutputError(f"'{folder}' exists", mend="--out another/folder, or --force to replace the run in it")
    if taken:
        _clear(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise OutputError(f"'{folder}' cannot be made: {failure.strerror}", mend="--out another/folder") from failure
    return folder


def refuse_file(folder: Path) -> None:
    """Refuse a path that cannot be a folder because it, or what it lies in, is a file.

    Raises:
        OutputError: it is so.
    """
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise OutputError(f"'{path}' is a file, so nothing can be written into it", mend="--out another/folder")
            return


@contextmanager
def exclusively(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder alone; a kill lets go of it. On file systems that know no locks nothing is held.

    Args:
        folder: that exists.
        wait: until whoever holds it lets go.

    Raises:
        OutputError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise OutputError(
                f"another process is writing into '{folder}'", mend="wait for it, or --out another/folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def is_leftover(entry: Path) -> bool:
    """Whether a kill has left this of something that was being written: ``.NAME-PROCESS``, ``.adapter-RANDOM``."""
    name, _, mark = entry.name.removeprefix(".").rpartition("-")
    known = (name in _FILES and mark.isdecimal()) or (name == "adapter" and len(mark) == len("abcd1234"))
    return known and entry.name.startswith(".") and not entry.is_symlink()


def remove(entry: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _clear(folder: Path) -> None:
    """Remove what a run has written; anything else that lies there stops it, before anything is removed."""
    for entry in replaceable(folder):
        remove(entry)


def replaceable(folder: Path) -> list[Path]:
    """What ``force`` would remove from a run's folder.

    Raises:
        OutputError: something else lies there.
    """
    inside = [] if folder.is_symlink() or not folder.is_dir() else list(folder.iterdir())
    ours = [entry for entry in inside if entry.name in (_FOLDERS if entry.is_dir() else _FILES) or is_leftover(entry)]
    foreign = [entry.name for entry in inside if entry.is_symlink() or entry not in ours]
    if foreign or not inside:
        raise OutputError(
            f"'{folder}' is no run's folder{f' alone (it holds {foreign[0]})' if foreign else ''}, "
            "so --force does not remove it",
            mend="--out another/folder",
        )
    return inside


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there completely or not at all."""
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
