"""The table of validation losses, which tell configurations apart where accuracies on few rows cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from llm_adapters.report.collect import Run
from llm_adapters.report.pooled import Configuration
from llm_adapters.report.table import Cell, Number, Table

Judge = tuple[str, ...]
"""What losses must have in common to be compared: base, how an example becomes tokens and labels, rows, seed."""


def loss_of(run: Run) -> float | None:
    """The loss at its best validation; None without validation."""
    found = run.manifest["training"].get("best_loss")
    return None if found is None else float(found)


def validation(points: Sequence[Configuration]) -> Table | None:
    """A row a configuration, the smallest losses first; None if no run was validated."""
    judged = [point for point in points if point.runs and all(loss_of(run) is not None for run in point.runs)]
    if not judged:
        return None
    runs = [run for point in judged for run in point.runs]
    best: dict[Judge, float] = {}
    for run in runs:
        best[_judge(run)] = min(_loss(run), best.get(_judge(run), float("inf")))
    many = Counter(map(_judge, runs))
    above = {id(run): _loss(run) - best[_judge(run)] for run in runs if many[_judge(run)] > 1}
    seeds = sorted({run.seed for run in runs}, key=lambda seed: (len(seed), seed))
    ranked = sorted(judged, key=lambda point: fmean(above.get(id(run), 0.0) for run in point.runs))
    rows: list[list[Cell]] = []
    for point in ranked:
        mean, own = fmean(map(_loss, point.runs)), {run.seed: above.get(id(run)) for run in point.runs}
        cells = [None if (excess := own.get(seed)) is None else Number(excess, f"{excess:+.4f}") for seed in seeds]
        rows.append([point.label, point.seeds, Number(mean, f"{mean:.3f}"), *cells])
    return Table(
        "validation", "Validation loss", ["configuration", "seeds", "loss", *(f"above, seed {seed}" for seed in seeds)],
        rows,
        "Nats a labelled token at the best validation, mean over the seeds. Above: how much more than the lowest of "
        "all configurations with the same base, template, labels, validation rows and seed; empty where there is no "
        "other. No interval: an order that holds in every seed is a hint, and two or three seeds are no more than "
        "that.",
    )  # fmt: skip


def _loss(run: Run) -> float:
    found = loss_of(run)
    assert found is not None
    return found


def _judge(run: Run) -> Judge:
    data = run.config["data"]
    made = (str(data.get(field)) for field in ("template", "train_on", "max_length"))
    return run.model, *made, str(run.manifest["data"].get("validation")), run.seed
