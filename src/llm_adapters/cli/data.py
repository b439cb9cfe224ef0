"""``llm-adapters data``: the benchmark files – which there are, fetching them, and what training data gives away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_adapters.data.contamination import Report
    from llm_adapters.data.download import Outcome
    from llm_adapters.data.example import Example
    from llm_adapters.data.registry import BenchmarkFile
    from llm_adapters.errors import DataError

NAME = "data"
app = typer.Typer(
    help="Benchmark files: list, download, and look for test questions in training data.", no_args_is_help=True
)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAMES]", help="Benchmarks, groups such as commonsense, or files such as gsm8k/test."),
]


@app.command("list")
def list_files() -> None:
    """List the benchmark files: rows, licence, and whether each is present, missing or damaged."""
    from llm_adapters.data.registry import FILES, data_folder, state

    table = Table("file", "rows", "state", "download", "licence", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for file in FILES.values():
        table.add_row(file.name, str(file.rows), state(file), "yes" if file.address else "no", file.licence)
    _console().print(table)
    typer.echo(f"\ndata folder: {data_folder()} (LLM_ADAPTERS_DATA)")


@app.command("download")
def download_files(
    names: Names = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are damaged or other ones.")] = False,
) -> None:
    """Fetch benchmark files, all by default; each is checked, and a correct one is never fetched again.

    An interrupted download goes on where it was cut.
    """
    from llm_adapters.data.download import download_all

    files, made = _wanted(names or [])
    for file in made:
        typer.echo(f"{file.name}: has no public address: {file.origin}", err=True)

    def tell(file: BenchmarkFile, outcome: Outcome | DataError) -> None:
        typer.echo(f"{file.name}: {outcome if isinstance(outcome, str) else 'failed'}", err=True)

    download_all(files, force=force, tell=tell)


@app.command("contamination")
def contamination_of(
    train: Annotated[str, typer.Argument(help="A training file, or a name such as math or gsm8k.")],
    benchmarks: Annotated[list[str] | None, typer.Argument(help="Test sets or groups; all present by default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Write the rows there.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.jsonl.")] = False,
) -> None:
    """Show how many questions of each test set a training file holds.

    exact: equal but for case, spaces and punctuation.

    numbers-masked: equal but for the numbers as well.

    8-gram: more than half of the question's word 8-grams stand in one training question.

    In FILE.jsonl each line is a test row and a kind, with the training rows; rows count from 0.
    """
    from llm_adapters.data.contamination import contamination
    from llm_adapters.data.sources import load_source
    from llm_adapters.errors import OutputError

    if out is not None and out.exists() and not force:
        raise OutputError(f"'{out}' exists already", mend="name another file, or add --force")
    report = contamination(load_source(train, split="train"), _tests(benchmarks or []))
    _console().print(_table(report))
    if out is not None:
        _write(report, out)
        typer.echo(f"\nrows: {out}")


def _wanted(names: Sequence[str]) -> tuple[list[BenchmarkFile], list[BenchmarkFile]]:
    """The files behind these names (all without any): those to download, and those that have no address.

    A file that was asked for by its very name is always among the first; a group stands for the test sets in it.
    """
    from llm_adapters.data.registry import BENCHMARKS, FILES
    from llm_adapters.data.registry_table import RECIPES
    from llm_adapters.errors import DataError
    from llm_adapters.evaluation.task import GROUPS, expand

    chosen: dict[str, bool] = {} if names else dict.fromkeys(FILES, False)
    for name in names:
        if name in GROUPS:  # where a training mixture has the same name, it is told beside them
            chosen |= {file: chosen.get(file, False) for file in (f"{each}/test" for each in expand([name]))}
            chosen |= {name: chosen.get(name, False)} if name in FILES else {}
        elif name in RECIPES:
            chosen |= {part: False for part, _ in RECIPES[name]}
        elif name in FILES:
            chosen[name] = True
        elif name in BENCHMARKS:
            chosen |= {file: False for file in FILES if file.startswith(f"{name}/") and file not in chosen}
        else:
            allowed = [*GROUPS, *BENCHMARKS, *RECIPES, *FILES]
            raise DataError(f"there is no benchmark '{name}'", given=name, allowed=allowed)
    files = [(FILES[name], by_name) for name, by_name in chosen.items()]
    return (
        [file for file, by_name in files if by_name or file.address],
        [file for file, by_name in files if not by_name and not file.address],
    )


def _tests(names: Sequence[str]) -> Mapping[str, Sequence[Example]]:
    """These test sets, or those in these groups; without names all that are present."""
    from llm_adapters.data.registry import BENCHMARKS, benchmark_file, load_benchmark, locate, missing
    from llm_adapters.evaluation.task import GROUPS, expand

    if names:
        sets = [each for name in names for each in (expand([name]) if name in GROUPS else [name])]
        return {name: load_benchmark(name) for name in dict.fromkeys(sets)}
    files = {name: benchmark_file(name) for name in BENCHMARKS}
    absent = [name for name, file in files.items() if locate(file) is None]
    if len(absent) == len(files):
        raise missing(list(files.values()))
    if absent:
        typer.echo(f"left out, not in the data folder: {', '.join(absent)}", err=True)
    return {name: load_benchmark(name) for name in BENCHMARKS if name not in absent}


def _table(report: Report) -> Table:
    from llm_adapters.data.contamination import KINDS

    table = Table("test set", "rows", *KINDS, "any", "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in report.sets.items():
        counts = [len(found.test_rows(kind)) for kind in KINDS]
        table.add_row(name, *map(str, (found.rows, *counts, len(found.test_rows()))), f"{found.share:.1%}")
    return table


def _write(report: Report, out: Path) -> None:
    """One line a test row and kind."""
    from llm_adapters.errors import OutputError

    lines = [
        json.dumps({"benchmark": name, "row": hit.test_row, "kind": hit.kind, "train_rows": hit.train_rows})
        for name, found in report.sets.items()
        for hit in found.hits
    ]
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        part.replace(out)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {error.strerror}", mend="name another file") from None


def _console() -> Console:
    """Standard output; lines are not cut where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
