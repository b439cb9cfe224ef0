"""Downloading registered files into the data folder.

    gsm8k/test.json             only ever a whole file that the registry accepts, put there by one rename
    gsm8k/.test.json.part       what has arrived so far; the next download goes on behind it
    gsm8k/.test.json.lock       one download at a time, across processes

A correct file is never touched. Another file of that name is left alone without ``force``. What arrives and is
not what the registry expects is deleted, and never gets the file's name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from llm_adapters.data.registry import BenchmarkFile, data_folder, state
from llm_adapters.data.transfer import Patience, transfer
from llm_adapters.errors import DataError

Outcome = Literal["downloaded", "present"]
DEFAULT = Patience()


def download(file: BenchmarkFile, *, force: bool = False, patience: Patience = DEFAULT) -> Outcome:
    """Have one registered file in the data folder.

    Args:
        file: which.
        force: replace a file that is there and is not the registry's; a correct one is kept in any case.
        patience: how long to wait and how often to try.

    Raises:
        DataError: no public address, another file in its place, an unreachable server, wrong content, no space.
    """
    if state(file) == "present":
        return "present"  # without a lock: the folder may well be read-only
    if file.address is None:
        raise DataError(f"'{file.name}' has no public address", mend=f"make {file.path} by hand: {file.origin}")
    target = data_folder() / file.path
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=patience.total):
            if (found := state(file)) == "present":
                return "present"  # another process has fetched it while this one waited
            if found == "damaged" and not force:
                raise DataError(
                    f"'{target}' is damaged, or is another file than the registry's '{file.name}'",
                    mend="move it away, or replace it: llm-adapters data download --force",
                )
            _fetch(file, file.address, part, patience)
            _put(part, target)
            return "downloaded"
    except Timeout:
        raise DataError(f"another process has been downloading '{file.name}' for too long", mend="end it") from None
    except OSError as error:
        raise DataError(
            f"'{target}' cannot be written: {error.strerror}", mend="name another folder in LLM_ADAPTERS_DATA"
        ) from None


def download_all(
    files: Sequence[BenchmarkFile],
    *,
    force: bool = False,
    patience: Patience = DEFAULT,
    tell: Callable[[BenchmarkFile, Outcome | DataError], None] = lambda *_: None,
) -> None:
    """Have all these files; one that fails does not keep the others from being fetched.

    Args:
        files: which.
        force: as of ``download``.
        patience: as of ``download``.
        tell: called after each file with what became of it.

    Raises:
        DataError: some failed; all of them are named.
    """
    failures: list[DataError] = []
    for file in files:
        try:
            tell(file, download(file, force=force, patience=patience))
        except DataError as error:
            failures.append(error)
            tell(file, error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise DataError("\n".join([f"{len(failures)} of {len(files)} files failed", *map(str, failures)]))


def _fetch(file: BenchmarkFile, address: str, part: Path, patience: Patience) -> None:
    """Complete the partial file; from the start, once more, if it was resumed and turns out to be something else."""
    for _ in range(2):
        resumed = transfer(address, part, patience)
        content = part.read_bytes()
        if file.accepts(content):
            return
        part.unlink()
        if not resumed:
            break
    expected = f"SHA-256 {file.sha256}" if file.git_blob is None else f"git id {file.git_blob}"
    raise DataError(
        f"{address} serves something else than the registry's '{file.name}': {len(content)} bytes that begin with"
        f" {content[:24]!r}, SHA-256 {hashlib.sha256(content).hexdigest()}; expected: {expected}",
        mend="a proxy or login page may stand between: try again, or put the file there by hand",
    )


def _put(part: Path, target: Path) -> None:
    """Make the complete part the file. A rename may reach the disk before the data does, so that is synced first."""
    for path in (part, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path == part:
            part.replace(target)
