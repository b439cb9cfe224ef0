"""The table of validation losses, which tell configurations apart where accuracies on few rows cannot."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from llm_adapters.report.collect import Run
from llm_adapters.report.pooled import Configuration
from llm_adapters.report.table import Cell, Number, Table

Judge = tuple[str, str, str, str]
"""What losses must have in common to be compared: base, template, validation data, seed."""


def loss_of(run: Run) -> float | None:
    """The loss at its best validation; None without validation."""
    found = run.manifest["training"].get("best_loss")
    return None if found is None else float(found)


def validation(points: Sequence[Configuration]) -> Table | None:
    """A row a configuration, the smallest loss first; None if no run was validated."""
    judged = [point for point in points if point.runs and all(loss_of(run) is not None for run in point.runs)]
    if not judged:
        return None
    best: dict[Judge, float] = {}
    for run in (run for point in judged for run in point.runs):
        best[_judge(run)] = min(_loss(run), best.get(_judge(run), float("inf")))
    rows: list[list[Cell]] = []
    for mean, point in sorted(((_mean(point), point) for point in judged), key=lambda pair: pair[0]):
        above = " · ".join(f"{run.seed}: {_loss(run) - best[_judge(run)]:+.3f}" for run in point.runs)
        rows.append([point.label, point.seeds, Number(mean, f"{mean:.3f}"), above])
    return Table(
        "validation", "Validation loss", ["configuration", "seeds", "loss", "above the lowest, by seed"], rows,
        "Nats a labelled token at the best validation, mean over the seeds; above the lowest of all configurations on "
        "the same base, template, validation rows and seed. An order that holds in every seed is a hint, and two or "
        "three seeds are no more than that.",
    )  # fmt: skip


def _mean(point: Configuration) -> float:
    return fmean(_loss(run) for run in point.runs)


def _loss(run: Run) -> float:
    found = loss_of(run)
    assert found is not None
    return found


def _judge(run: Run) -> Judge:
    return run.model, run.config["data"]["template"], str(run.manifest["data"].get("validation")), run.seed
