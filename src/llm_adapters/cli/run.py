"""``llm-adapters run``: evaluate the base, train, evaluate again, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer

from llm_adapters.cli.options import ConfigFile, Force, Out, Set
from llm_adapters.cli.progress import Progress
from llm_adapters.errors import ConfigError, Stopped

NAME = "run"


def command(config: ConfigFile = None, set_: Set = None, out: Out = None, force: Force = False) -> None:
    """Evaluate the base, train an adapter, evaluate again, write a report; goes on with an interrupted run."""
    carry_out(config, set_, out, force=force, score=True)


def carry_out(config: Path | None, set_: list[str] | None, out: Path | None, *, force: bool, score: bool) -> None:
    """Read the configuration, execute the run, write its report and show the result."""
    from llm_adapters.report import write_report, write_run_page
    from llm_adapters.runs.follow import follow
    from llm_adapters.runs.run import execute, read_config
    from llm_adapters.train import Stop, Team
    from llm_adapters.train.sharding import is_sharded
    from llm_adapters.train.team import leave

    team = Team.join()
    try:
        with team.together(), Stop() as stop, Progress() as progress:
            settings = read_config(config, set_ or [])
            folder = out or Path("runs") / settings.name
            if score and is_sharded(settings.train, team):
                raise ConfigError(
                    "train.distributed=fsdp shards the base, and evaluation needs it whole",
                    mend="llm-adapters train, then llm-adapters evaluate RUN; or train.distributed=ddp",
                )
            if team.leads:
                execute(settings, folder, progress, force=force, score=score, stop=stop)
            else:
                follow(settings, folder, stop)
    except Stopped as stopped:
        if team.leads:  # --force would start again
            again = shlex.join(["llm-adapters", *(part for part in sys.argv[1:] if part != "--force")])
            behind = ", behind the launcher" if team.size > 1 else ""
            typer.echo(f"{stopped}; to go on: {again}{behind}", err=True)
        return
    leave()
    if not team.leads:
        return
    report, page = write_report(folder), write_run_page(folder)
    table = [line for line in report.read_text(encoding="utf-8").split("## Cost")[0].splitlines()[1:] if line]
    typer.echo("\n".join(["", *table, "", f"report: {report}, {page}", f"adapter: {folder / 'adapter'}"]))
