"""Writing that survives a kill, and failures of the disk in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_adapters.errors import OutputError, disk_mend


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn a failure of the file system, such as a full disk, into a message with its mend.

    Args:
        path: what is being written.
        kept: what is safe all the same.

    Raises:
        OutputError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as failure:
        raise OutputError(
            f"'{path}' cannot be written: {failure.strerror or failure}{kept and f'; {kept}'}",
            mend=f"{disk_mend(failure)}; the same command then goes on from the last checkpoint",
        ) from failure


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
