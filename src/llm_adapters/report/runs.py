"""The table of single runs, which the page sorts and filters, and of the trials that have no run yet."""

from __future__ import annotations

from collections.abc import Sequence

from llm_adapters.report.collect import SEED, Collected, Run
from llm_adapters.report.cost import memory, parameters, seconds
from llm_adapters.report.pooled import MEAN, Configuration, protocols, results
from llm_adapters.report.table import Cell, Number, Table, percent, share
from llm_adapters.report.validation import loss_of


def run_table(found: Collected, points: Sequence[Configuration]) -> Table:
    """A row a finished run: one seed each, so intervals answer for the choice of rows alone."""
    protocol = next(iter(protocols(points)), "")
    axes = [axis for axis in found.study.axes if axis != SEED]
    of_one = {id(point.runs[0]): point.results for point in points if len(point.runs) == 1}
    rows: list[list[Cell]] = []
    for run in found.runs:
        tuned = (of_one.get(id(run)) or results([run.tuned])).get((protocol, MEAN))
        right, total = _count(run, protocol)
        change = None if tuned is None or not total else 100 * (tuned.accuracy.value - right)
        forgetting = (run.manifest.get("forgetting") or {}).get("difference")
        rows.append([
            run.trial.id, *(run.trial.axes.get(axis, "") for axis in axes), Number(float(run.seed), run.seed),
            percent(tuned.accuracy) if tuned else None,
            None if change is None else Number(change, f"{change:+.1f}"),
            share(tuned.unparsed) if tuned else None,
            Number(parameters(run), f"{parameters(run):,.0f}"), Number(seconds(run), f"{seconds(run):,.1f}"),
            Number(memory(run), f"{memory(run):.2f}"),
            Number(run.manifest["training"]["last_loss"], f"{run.manifest['training']['last_loss']:.3f}"),
            None if (judged := loss_of(run)) is None else Number(judged, f"{judged:.3f}"),
            None if forgetting is None else Number(forgetting, f"{forgetting:+.3f}"),
        ])  # fmt: skip
    heads = [
        "trial", *axes, "seed", "accuracy", "change, points", "unparsed", "trained parameters", "training, s",
        "peak memory, GiB", "last loss", "validation loss", "forgetting, nats",
    ]  # fmt: skip
    note = (
        f"Accuracy: mean over the sets, protocol {protocol}, in percent with 95 % intervals for the choice of rows; "
        "change: against the base. Every row is one seed."
    )
    return Table("runs", "Runs", heads, rows, note)


def unfinished_table(found: Collected) -> Table | None:
    """Trials that failed, wait or are under way."""
    rows: list[list[Cell]] = [
        [trial.id, " · ".join(trial.axes.values()), trial.status, (trial.error or "").partition("\n")[0]]
        for trial in found.unfinished
    ]
    heads = ["trial", "axes", "status", "why"]
    return Table("unfinished", "Trials without a result", heads, rows, "No number here counts them.") if rows else None


def _count(run: Run, protocol: str) -> tuple[float, int]:
    """The base's mean accuracy over the run's sets, and how many of those it answered."""
    names = {score.benchmark for score in run.tuned.scores if score.protocol == protocol}
    own = [s.accuracy for s in run.base.scores if s.protocol == protocol and s.benchmark in names]
    return (sum(own) / len(own), len(own)) if own and len(own) == len(names) else (0.0, 0)
