"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file; without it, all defaults.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a field, e.g. --set adapter.method=series. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default runs/NAME.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run in that folder.")]
