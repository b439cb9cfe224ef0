"""``llm-adapters study``: runs over axes, planned, carried out, gone on with, watched."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llm_adapters.cli.options import Set
from llm_adapters.cli.progress import Progress
from llm_adapters.errors import Stopped

if TYPE_CHECKING:
    from llm_adapters.study.prepare import Prepared
    from llm_adapters.study.processes import Executor

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
    cohort: Annotated[
        int | None, typer.Option(min=2, help="Train so many runs that share base and data together, on one base.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs a run, with --ray.")] = 0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Take up failed runs again.")] = False,
) -> None:
    """Carry out a study, go on with it, or extend it: only what is not done yet runs."""
    from llm_adapters.study.ledger import Ledger
    from llm_adapters.study.prepare import open_study, prepare
    from llm_adapters.train import Stop

    prepared = prepare(file, set_)
    executor = _executor(prepared, workers, cohort, ray, gpus)
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
            executor.run(folder, progress, stop)
        except Stopped as stopped:
            again = shlex.join(["llm-adapters", *sys.argv[1:]])
            typer.echo(f"{stopped}; to go on: {again}", err=True)
            return
    if _show(folder):
        raise typer.Exit(2)


@app.command("status")
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a study, such as studies/NAME.")],
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until all is done.")] = False,
) -> None:
    """Show how far a study is: done, running, failed, time left, the best so far."""
    from llm_adapters.study.status import read_status

    while True:
        if watch and sys.stdout.isatty():
            typer.echo("\033[2J\033[H", nl=False)  # an empty screen
        _show(folder)
        counts = read_status(folder).counts if watch else {}
        if not counts.get("waiting") and not counts.get("running"):
            return
        time.sleep(5)


def _executor(prepared: Prepared, workers: int, cohort: int | None, ray: str | None, gpus: float) -> Executor:
    """Who carries the runs out.

    Raises:
        ConfigError: they exclude each other.
    """
    from llm_adapters.errors import ConfigError
    from llm_adapters.study.cohorts import Cohorts
    from llm_adapters.study.processes import InProcess, Processes
    from llm_adapters.study.ray_cluster import Ray
    from llm_adapters.study.search import Adaptive

    asked = [name for name, given in (("--workers", workers > 1), ("--cohort", cohort), ("--ray", ray)) if given]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} exclude each other", mend="one of them")
    if prepared.study.file.search:
        if asked:
            raise ConfigError(f"a search proposes one run after the other, not with {asked[0]}",
                              mend="type the command several times: they share the study")  # fmt: skip
        return Adaptive(prepared.study, prepared.bases)
    if gpus and ray is None:
        raise ConfigError("--gpus says what a run gets on a Ray cluster", mend="--ray ADDRESS --gpus 1")
    if ray is not None:
        return Ray(None if ray == "local" else ray, gpus=gpus)
    if cohort is not None:
        return Cohorts(cohort)
    return Processes(workers) if workers > 1 else InProcess()


def _plan(prepared: Prepared) -> None:
    from rich.console import Console
    from rich.table import Table

    from llm_adapters.study.prediction import predict

    predicted = predict(prepared.trials, lambda text: typer.echo(f"{text} …", err=True))
    axes = list(dict.fromkeys(axis for trial in prepared.trials for axis in trial.axes))
    table = Table("run", *axes, "trained", "steps", "rows", "training", "memory", box=None)
    for trial, cost in zip(prepared.trials, predicted, strict=True):
        table.add_row(
            trial.id, *(trial.axes.get(axis, "–") for axis in axes), f"{trial.parameters:,}", str(trial.steps),
            str(trial.rows), _duration(cost.seconds), f"{cost.peak / 1e9:.1f} GB",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 200)
    if prepared.study.file.search:
        typer.echo(f"a search of {prepared.study.file.search.runs} runs; some that it may propose:")
    console.print(table)
    for trial in prepared.trials:
        if trial.chosen:
            typer.echo(f"{trial.id}: {trial.chosen}")
    steps, rows = (sum(values) for values in zip(*((t.steps, t.rows) for t in prepared.trials), strict=True))
    typer.echo(f"\n{len(prepared.trials)} runs, {steps:,} steps, {rows:,} rows evaluated, and those of the base once")
    typer.echo(f"training takes about {_duration(sum(each.seconds for each in predicted))}, one run after the other")


def _show(folder: Path) -> bool:
    """Print the status; whether runs failed, those that ended early left out."""
    from llm_adapters.study.status import read_status
    from llm_adapters.study.trials import described

    now = read_status(folder)
    typer.echo(f"{now.name}: " + ", ".join(f"{count} {state}" for state, count in now.counts.items()))
    if now.seconds_left and (now.counts["waiting"] or now.counts["running"]):
        typer.echo(f"about {_duration(now.seconds_left)} left with {max(1, len(now.running))} at a time")
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
    return any(not entry.detail.get("early") for entry in now.failed)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
