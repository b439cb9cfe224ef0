"""What the runs of a study will take, predicted before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_adapters.runs.plan import Plan, plan
from llm_adapters.study.expand import Trial


def predict(trials: Sequence[Trial], note: Callable[[str], None]) -> list[Plan]:
    """The plan of each run's training; runs that differ in the seed alone are predicted once.

    Args:
        trials: the runs.
        note: told of each prediction, which takes a moment.
    """
    known: dict[str, Plan] = {}
    for trial in trials:
        key = _key(trial)
        if key not in known:
            note(f"predicting run {trial.id}")
            known[key] = plan(trial.config)
    return [known[_key(trial)] for trial in trials]


def _key(trial: Trial) -> str:
    return trial.config.model_dump_json(exclude={"name", "seed", "evaluate"})
