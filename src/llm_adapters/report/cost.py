"""The tables of cost: what a configuration takes in parameters, memory and time, and what the base forgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from llm_adapters.report.collect import Run
from llm_adapters.report.pooled import Configuration
from llm_adapters.report.table import Cell, Number, Table

MIB, GIB = 2**20, 2**30


def parameters(run: Run) -> float:
    """Trained parameters."""
    return float(run.manifest["parameters"]["trained"])


def memory(run: Run) -> float:
    """Peak memory in GiB: of the GPU if there was one, else of the process."""
    return float(run.manifest["peak_memory_bytes"]) / GIB


def seconds(run: Run) -> float:
    """Of training."""
    return float(run.manifest["training"]["seconds"])


def over_seeds(point: Configuration, measure: Callable[[Run], float]) -> float:
    """The mean over the seeds."""
    return fmean(map(measure, point.runs))


def cost(points: Sequence[Configuration]) -> Table:
    """A row a trained configuration."""
    rows: list[list[Cell]] = []
    for point in (point for point in points if point.runs):
        of = over_seeds(point, parameters)
        base = over_seeds(point, lambda run: float(run.manifest["parameters"]["base"]))
        time = over_seeds(point, seconds)
        speed = over_seeds(point, lambda run: run.manifest["training"]["tokens"] / max(seconds(run), 1e-9))
        sizes = [run.adapter_bytes for run in point.runs if run.adapter_bytes is not None]
        first = over_seeds(point, lambda run: float(run.manifest["training"]["first_loss"]))
        last = over_seeds(point, lambda run: float(run.manifest["training"]["last_loss"]))
        peak = over_seeds(point, memory)
        rows.append([
            point.label, point.seeds, Number(of, f"{of:,.0f}"), Number(100 * of / base, f"{100 * of / base:.3g}"),
            Number(fmean(sizes) / MIB, f"{fmean(sizes) / MIB:.2f}") if sizes else None,
            Number(time, f"{time:,.0f}" if time >= 10 else f"{time:.2f}"), Number(speed, f"{speed:,.0f}"),
            Number(peak, f"{peak:.2f}"), Number(first, f"{first:.3f}"), Number(last, f"{last:.3f}"),
        ])  # fmt: skip
    heads = [
        "configuration", "seeds", "trained parameters", "percent of base", "file, MiB", "training, s", "tokens/s",
        "peak memory, GiB", "first loss", "last loss",
    ]  # fmt: skip
    return Table(
        "cost", "Cost", heads, rows,
        "Means over the seeds. Losses: mean over the first and the last tenth of the steps. Peak memory is that of the "
        "GPU, or without one of the whole process, with what its heap kept of runs before. Times of runs that shared a "
        "machine are no measure of a method.",
    )  # fmt: skip


def forgotten(point: Configuration) -> list[dict[str, Any]]:
    """The measurements of forgetting of its runs; empty unless every run has one."""
    found = [run.manifest["forgetting"] for run in point.runs if run.manifest.get("forgetting")]
    return found if len(found) == len(point.runs) else []


def forgetting(points: Sequence[Configuration]) -> Table | None:
    """A row a configuration whose runs measured it; None without any."""
    rows: list[list[Cell]] = []
    for point in points:
        if not (found := forgotten(point)):
            continue
        before, after = (fmean(each[key] for each in found) for key in ("before", "after"))
        one = found[0]
        text = f"{after - before:+.3f}"
        if len(found) == 1:
            text += f" ({one['low']:+.3f} to {one['high']:+.3f})"
        change = Number(after - before, text)
        rows.append([
            point.label, point.seeds, f"{one['text']}, {one['tokens']:,} tokens", Number(before, f"{before:.3f}"),
            Number(after, f"{after:.3f}"), change,
        ])  # fmt: skip
    if not rows:
        return None
    return Table(
        "forgetting", "Forgetting", ["configuration", "seeds", "text", "before", "after", "change"], rows,
        "Cross-entropy in nats a token on plain text that was not trained on; more is worse. The interval of one seed "
        "(95 %, bootstrap over pieces of the text) answers for the choice of text alone; of several seeds the mean.",
    )  # fmt: skip
