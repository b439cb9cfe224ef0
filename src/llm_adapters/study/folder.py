"""The folder of a run: made without overwriting anything, complete when its manifest is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm_adapters.errors import OutputError

MANIFEST = "manifest.json"
_MARKS = ("config.yaml", "evaluation.json", MANIFEST)


def fresh_folder(folder: Path, *, force: bool) -> Path:
    """An empty folder for a run.

    ``force`` removes what an earlier run left there, and nothing else.

    Raises:
        OutputError: the path is taken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_run = folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)
        if not force:
            raise OutputError(f"'{folder}' exists", mend="--out another/folder, or --force to replace the run in it")
        if not is_run:
            raise OutputError(
                f"'{folder}' is no run's folder, so --force does not remove it", mend="--out another/folder"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise OutputError(f"'{folder}' cannot be made: {failure.strerror}", mend="--out another/folder") from failure
    return folder
