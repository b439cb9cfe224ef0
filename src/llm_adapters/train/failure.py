"""``failed.json``: why a member left its cohort, and when."""

from __future__ import annotations

import json
from pathlib import Path

from llm_adapters.adapters.store import write_synced
from llm_adapters.train.disk import writing

FAILED = "failed.json"


def write_failure(folder: Path, step: int, problem: str) -> None:
    """Record that a training failed in ``step``.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(folder / FAILED):
        write_synced(folder / FAILED, (json.dumps({"step": step, "error": problem}) + "\n").encode())


def read_failure(folder: Path) -> tuple[int, str] | None:
    """The step in which a training failed, and why; None if it has not, or a kill came before all was written."""
    try:
        record = json.loads((folder / FAILED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return int(record["step"]), str(record["error"])
