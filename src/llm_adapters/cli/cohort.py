"""``llm-adapters cohort``: several runs at once on one base."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_adapters.cli.options import Force, Set
from llm_adapters.cli.progress import Progress
from llm_adapters.errors import ConfigError, Stopped, TrainingError

NAME = "cohort"


def command(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG …", help="YAML files with different names in them.")],
    set_: Set = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Each run is written to DIR/NAME.")] = Path("runs"),
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows in one forward pass, of all runs together; default as one of them alone."),
    ] = None,
    train_only: Annotated[bool, typer.Option("--train-only", help="Do not evaluate.")] = False,
    force: Force = False,
) -> None:
    """Several runs at once on one base, each as by itself; the same command goes on after a kill."""
    from llm_adapters.report import write_report
    from llm_adapters.runs.cohort import execute_cohort
    from llm_adapters.runs.run import read_config
    from llm_adapters.train import Stop

    settings = [read_config(path, set_ or []) for path in configs]
    names = [each.name for each in settings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two configurations have the name '{twice[0]}': {', '.join(map(str, configs))}",
            mend="give each its own 'name'; it is the folder of its run",
        )
    folders = [out / name for name in names]
    try:
        with Stop() as stop, Progress() as progress:
            failed = execute_cohort(
                settings, folders, progress, force=force, score=not train_only, stop=stop, rows=rows
            )
    except Stopped as stopped:
        # --force would start again.
        again = shlex.join(["llm-adapters", *(part for part in sys.argv[1:] if part != "--force")])
        typer.echo(f"{stopped}; to go on: {again}", err=True)
        return
    for folder, problem in zip(folders, failed, strict=True):
        if problem is None:
            typer.echo(f"report: {write_report(folder)}")
    problems = [f"{folder.name}: {text}" for folder, text in zip(folders, failed, strict=True) if text is not None]
    if problems:
        raise TrainingError(
            f"{len(problems)} of {len(folders)} runs failed, the others are complete\n" + "\n".join(problems)
        )
