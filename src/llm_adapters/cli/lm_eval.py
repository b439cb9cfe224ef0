"""``llm-adapters lm-eval``: the command line of lm-evaluation-harness, which knows the model ``llm-adapters`` there."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

NAME = "lm-eval"
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}  # all is the harness's


def command(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model llm-adapters (docs/lm-eval.md); every option is the harness's own."""
    import_module("llm_adapters.interop.lm_eval")  # registers the model, or says what to install
    sys.argv = ["lm-eval", *context.args]
    import_module("lm_eval.__main__").cli_evaluate()
