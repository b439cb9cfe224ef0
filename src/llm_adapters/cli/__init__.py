"""The command line: one subcommand a file."""

from __future__ import annotations

import logging
import os
import sys

import typer

from llm_adapters.cli import cohort, compare, data, evaluate, lm_eval, methods, plan, report, run, sites, study, train
from llm_adapters.errors import UserError

app = typer.Typer(
    name="llm-adapters",
    help="Adapters for decoder language models: train, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, train, cohort, plan, evaluate, compare, report, sites, methods):
    app.command(command.NAME)(command.command)
app.command(lm_eval.NAME, context_settings=lm_eval.SETTINGS)(lm_eval.command)
app.add_typer(data.app, name=data.NAME)
app.add_typer(study.app, name=study.NAME)
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, without a word


def main() -> None:
    """Run the command line: a user's mistake is one message and exit code 2, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("torchao", "torch.utils._pytree"):  # transformers imports it, it warns of what it was not built for
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        _refuse_processes(sys.argv[1:2])
        app()
    except UserError as mistake:
        if not mistake.told:
            typer.echo(f"error: {mistake}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as failure:  # a full disk, a folder that cannot be written
        typer.echo(f"error: {failure.filename or 'a file'}: {failure.strerror or failure}", err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("interrupted", err=True)
        raise


def _refuse_processes(command: list[str]) -> None:
    """Under ``torchrun`` or ``accelerate launch`` only training is shared; anything else would be done many times."""
    together = [run.NAME, train.NAME]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and command and command[0] not in together:
        mistake = UserError(f"'{command[0]}' runs in one process", mend=f"without the launcher; it is for {together}")
        mistake.told = os.environ["RANK"] != "0"
        raise mistake
