"""What the runs of a study will take, predicted before any weight is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from llm_adapters.config.schema import RunConfig
from llm_adapters.study.expand import Trial

_MODULE = "llm_adapters.study.plan"


@dataclass(frozen=True)
class Prediction:
    """Of one run's training.

    Attributes:
        seconds: that it takes here.
        peak_bytes: memory when most is held.
    """

    seconds: float
    peak_bytes: int


def predict(trials: Sequence[Trial], note: Callable[[str], None]) -> list[Prediction] | None:
    """Time and memory of each run's training; runs that differ in the seed alone are predicted once.

    Args:
        trials: the runs.
        note: told of each prediction, which takes a moment.

    Returns:
        None where this version has nothing to predict with.
    """
    if find_spec(_MODULE) is None:
        return None
    plan: Callable[[RunConfig], Any] | None = getattr(importlib.import_module(_MODULE), "plan", None)
    if plan is None:
        return None
    known: dict[str, Prediction] = {}
    for trial in trials:
        key = _key(trial)
        if key not in known:
            note(f"predicting run {trial.id}")
            planned = plan(trial.config)
            known[key] = Prediction(planned.seconds, planned.peak)
    return [known[_key(trial)] for trial in trials]


def _key(trial: Trial) -> str:
    return trial.config.model_dump_json(exclude={"name", "seed", "evaluate"})
