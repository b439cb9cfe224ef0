"""``llm-adapters study``: runs over axes, planned, carried out, gone on with, watched."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llm_adapters.cli.options import Set
from llm_adapters.cli.progress import Progress
from llm_adapters.errors import Stopped

NAME, RUN = "study", "run"


class _FileFirst(TyperGroup):
    """A group in which a study's file stands where a subcommand could stand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileFirst, no_args_is_help=True, pretty_exceptions_enable=False,
    help="study STUDY.yaml: runs over axes. study status DIR: how far they are.",
)  # fmt: skip


@app.command(RUN)
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study; see docs/studies.md.")],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default studies/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, run nothing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that carry out runs.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Take up failed runs again.")] = False,
) -> None:
    """Carry out a study, go on with it, or extend it: only what is not done yet runs."""
    from llm_adapters.study.ledger import Ledger
    from llm_adapters.study.prepare import open_study, prepare
    from llm_adapters.study.processes import Executor, InProcess, Processes
    from llm_adapters.train import Stop

    prepared = prepare(file, set_)
    folder = out or Path("studies") / prepared.study.name
    if dry_run:
        _plan(prepared)
        return
    with Stop() as stop, Progress() as progress:
        try:
            open_study(prepared, folder, progress.note)
            if retry_failed:
                with Ledger(folder) as ledger:
                    progress.note(f"{ledger.retry_failed()} failed runs are taken up again")
            executor: Executor = InProcess() if workers == 1 else Processes(workers)
            executor.run(folder, progress, stop)
        except Stopped as stopped:
            again = shlex.join(["llm-adapters", *sys.argv[1:]])
            typer.echo(f"{stopped}; to go on: {again}", err=True)
            return
    _show(folder)


@app.command("status")
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a study, such as studies/NAME.")],
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until all is done.")] = False,
) -> None:
    """Show how far a study is: done, running, failed, time left, the best so far."""
    from llm_adapters.study.status import read_status

    while True:
        if watch and sys.stdout.isatty():
            typer.clear()
        _show(folder)
        counts = read_status(folder).counts if watch else {}
        if not counts.get("waiting") and not counts.get("running"):
            return
        time.sleep(5)


def _plan(prepared: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    axes = list(dict.fromkeys(axis for trial in prepared.trials for axis in trial.axes))
    table = Table("run", *axes, "trained", "steps", "rows", box=None)
    for trial in prepared.trials:
        table.add_row(
            trial.id, *(trial.axes.get(axis, "–") for axis in axes), f"{trial.parameters:,}", str(trial.steps),
            str(trial.rows),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for trial in prepared.trials:
        if trial.chosen:
            typer.echo(f"{trial.id}: {trial.chosen}")
    steps, rows = (sum(values) for values in zip(*((t.steps, t.rows) for t in prepared.trials), strict=True))
    typer.echo(f"\n{len(prepared.trials)} runs, {steps:,} steps, {rows:,} rows evaluated, and those of the base once")


def _show(folder: Path) -> None:
    from llm_adapters.study.expand import described
    from llm_adapters.study.status import read_status

    now = read_status(folder)
    typer.echo(f"{now.name}: " + ", ".join(f"{count} {state}" for state, count in now.counts.items()))
    if now.seconds_left and (now.counts["waiting"] or now.counts["running"]):
        typer.echo(f"about {_duration(now.seconds_left)} left with {max(1, now.workers)} at work")
    for entry, doing in now.running:
        typer.echo(f"  running  {entry.id}  {described(entry.axes)}: {doing}")
    for entry in now.failed:
        typer.echo(f"  failed   {entry.id}  {described(entry.axes)}: {_first_line(entry.detail.get('error', ''))}")
    if now.failed:
        typer.echo("  --retry-failed takes failed runs up again")
    if now.best is not None:
        entry, score = now.best
        value = f"{score:.1%}" if now.objective == "accuracy" else f"{score:.4f}"
        typer.echo(f"best so far: {described(entry.axes)}, {now.objective} {value} ({folder / 'runs' / entry.id})")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
