"""What came out of a run that is complete, in one number."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_adapters.errors import OutputError
from llm_adapters.runs.begun import differences
from llm_adapters.runs.names import MANIFEST


@dataclass(frozen=True)
class Outcome:
    """Of one run.

    Attributes:
        seconds: that it took, over all sessions.
        score: by the study's objective; None where the run does not tell.
        steps: of its training.
    """

    seconds: float
    score: float | None
    steps: int

    def record(self) -> dict[str, float | None]:
        """For the ledger."""
        return asdict(self)


def outcome(folder: Path, config: dict[str, Any], objective: str) -> Outcome | None:
    """The outcome of the run in ``folder``; None unless it is complete, and the run of ``config``.

    Raises:
        OutputError: its manifest or the summary of its scores is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if differences(manifest["config"], config):
            return None
        return Outcome(manifest["seconds"], _score(folder, manifest, objective), manifest["training"]["steps"])
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise OutputError(
            f"a file of the complete run '{folder}' is damaged ({failure!r})",
            mend="remove the run's folder: the study carries it out again",
        ) from failure


def _score(folder: Path, manifest: dict[str, Any], objective: str) -> float | None:
    if objective != "accuracy":
        value = manifest["training"]["best_loss" if objective == "validation_loss" else "last_loss"]
        return None if value is None else float(value)
    summary = folder / "eval" / "summary.json"
    if not summary.is_file():
        return None
    scores = json.loads(summary.read_text(encoding="utf-8"))["scores"]
    # Under two protocols the first counts; over several sets the mean.
    tuned = [s["accuracy"] for s in scores if s["adapter"] is not None and s["protocol"] == scores[0]["protocol"]]
    return sum(tuned) / len(tuned) if tuned else None
