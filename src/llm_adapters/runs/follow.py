"""A run in a process that does not lead: it takes part in the training, and writes and says nothing."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from llm_adapters.config.schema import RunConfig
from llm_adapters.runs.run import ActiveRun
from llm_adapters.runs.run_plan import RunPlan
from llm_adapters.train import Stop


class _Silent:
    """An observer that keeps everything to itself."""

    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...
    def note(self, text: str) -> None: ...


def follow(config: RunConfig, folder: Path, stop: Stop) -> None:
    """Do what ``execute`` does in the process that leads, as far as several processes do it: train.

    Where the leader has nothing left to train, or fails, it says so and ends this.

    Raises:
        UserError, Stopped: as in ``execute``.
    """
    disable_progress_bar()  # the leader shows one
    plan = RunPlan.of(config, score=False)
    run = ActiveRun.prepare(config, plan.template, folder, _Silent())
    encoded, judges = run.encode(plan.data.examples, "training"), run.encode(plan.data.validation, "validation")
    run.train_adapter(encoded, judges, plan.data, plan.rate, stop, by_accuracy=None)
