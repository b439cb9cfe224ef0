"""The command line: one subcommand a file."""

from __future__ import annotations

import os
import sys

import typer

from llm_adapters.cli import compare, data, evaluate, lm_eval, methods, plan, report, run, sites, train
from llm_adapters.errors import UserError

app = typer.Typer(
    name="llm-adapters",
    help="Adapters for decoder language models: train, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, train, plan, evaluate, compare, report, sites, methods):
    app.command(command.NAME)(command.command)
app.command(lm_eval.NAME, context_settings=lm_eval.SETTINGS)(lm_eval.command)
app.add_typer(data.app, name=data.NAME)
INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, without a word


def main() -> None:
    """Run the command line: a user's mistake is one message and exit code 2, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except UserError as mistake:
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
