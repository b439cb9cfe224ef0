"""``llm-adapters methods``: the adapter family, and the fields of each method."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAME = "methods"


def command(name: Annotated[str | None, typer.Argument(help="Show the fields of one method.")] = None) -> None:
    """List the methods, or the fields of one."""
    from llm_adapters.adapters.method import methods
    from llm_adapters.errors import MethodError

    known = methods()
    if name is None:
        table = Table("method", "what it computes", box=None, pad_edge=False)
        for key, method in known.items():
            table.add_row(key, Text(_first_sentence(method)))
        Console().print(table)
        return
    if name not in known:
        raise MethodError(f"unknown method '{name}'", given=name, allowed=known)
    method = known[name]
    typer.echo(f"{name}: {inspect.cleandoc(method.__doc__ or '')}\n")
    schema = method.model_json_schema()
    for field, info in method.model_fields.items():
        typer.echo(f"  {field} = {_plain(info.default)}{_allowed(schema['properties'][field])}")
    typer.echo(f"\nlearning rate, if the recipe names none: {method.learning_rate:g}")


def _first_sentence(method: type) -> str:
    text = " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())
    return text.replace("``", "")


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"   one of {', '.join(schema['enum'])}"
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    said = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    return f"   {' and '.join(said)}" if said else ""
