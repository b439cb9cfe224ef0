"""``llm-adapters compare``: which of two runs is better, on the rows that both answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llm_adapters.evaluation.compare import Comparison
    from llm_adapters.evaluation.rows import Row

NAME = "compare"
BASE = "base"

Run = Annotated[str, typer.Argument(metavar="RUN[:ADAPTER]", help="A run's folder; RUN:base is its base model.")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="Whose rows: standard, paper or likelihood.")]


def command(run_a: Run, run_b: Run, protocol: ProtocolName = "standard") -> None:
    """Compare two runs row by row: paired differences, intervals, exact tests."""
    from llm_adapters.errors import DataError
    from llm_adapters.evaluation.compare import compare, describe
    from llm_adapters.evaluation.protocols import get_protocol

    get_protocol(protocol)
    a, b = (_rows(run, protocol) for run in (run_a, run_b))
    if run_a == run_b:
        raise DataError(f"'{run_a}' is compared with itself", mend="name two runs, or RUN:base for its base")
    comparison = compare(a, b)
    typer.echo(f"A: {run_a}\nB: {run_b}\n")
    _table(comparison)
    typer.echo(f"\n{describe(comparison)}")


def _rows(run: str, protocol: str) -> list[Row]:
    """The rows of one adapter of a run, or of its base, under one protocol."""
    from llm_adapters.errors import DataError
    from llm_adapters.evaluation.outcomes import predictions

    folder, adapter = Path(run), ""
    if not folder.is_dir() and ":" in run:
        path, _, adapter = run.rpartition(":")
        folder = Path(path)
    if not folder.is_dir():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        there = [each.name for each in beside if (each / "eval").is_dir()]
        raise DataError(f"'{folder}' does not exist", given=folder.name, allowed=there, mend="the folder of a run")
    rows = [row for row in predictions(folder / "eval") if row.get("protocol", "standard") == protocol]
    if not any((folder / "eval").glob("*.jsonl")):
        raise DataError(
            f"'{folder}' holds no predictions: there is no eval/*.jsonl in it",
            mend=f"llm-adapters evaluate {folder} --benchmarks …, and compare in the folder that it writes",
        )
    names = {_name(row) for row in rows}
    tuned = sorted(names - {BASE})
    if not adapter and len(tuned) != 1:
        raise DataError(
            f"'{folder}' has rows of {len(tuned)} adapters under the protocol '{protocol}'",
            allowed=[f"{folder}:{name}" for name in sorted(names)],
            mend="say which, after a colon",
        )
    wanted = adapter or tuned[0]
    if wanted not in names:
        raise DataError(
            f"'{folder}' has no rows of '{wanted}' under the protocol '{protocol}'", given=wanted, allowed=sorted(names)
        )
    return [row for row in rows if _name(row) == wanted]


def _name(row: Row) -> str:
    return str(row.get("adapter") or BASE)


def _table(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("set", "rows", "A", "B", "unparsed A, B", "B - A, points", "95 % CI", "p", "p, Holm")
    table = Table(*columns, box=None, pad_edge=False)
    for each in comparison.sets:
        table.add_row(
            each.benchmark, f"{each.rows:,}", f"{each.accuracy_a:.1%}", f"{each.accuracy_b:.1%}",
            f"{each.unparsed_a}, {each.unparsed_b}", f"{each.difference:+.1f}",
            f"{each.interval.low:+.1f} to {each.interval.high:+.1f}", f"{each.p:.2g}", f"{each.p_corrected:.2g}",
        )  # fmt: skip
    if len(comparison.sets) > 1:
        value, interval = comparison.overall
        rows = f"{sum(each.rows for each in comparison.sets):,}"
        table.add_row(
            "mean", rows, "", "", "", f"{value:+.1f}", f"{interval.low:+.1f} to {interval.high:+.1f}",
            f"{comparison.p:.2g}", "",
        )  # fmt: skip
    Console(width=120).print(table)
