"""Which fields of a run an axis may set, and short names for those that studies mostly vary."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from llm_adapters.adapters.method import methods
from llm_adapters.config.files import assign, read_yaml
from llm_adapters.config.schema import RunConfig
from llm_adapters.config.strict import Strict
from llm_adapters.errors import ConfigError, nearest

Fields = tuple[tuple[str, Any], ...]
"""Field paths and what they are set to, in order."""
SIZE, SIZES = "adapter.size", ("rank", "bottleneck", "tokens")
"""``adapter.size`` stands for whichever of these fields a method has."""
FROM = "from"
"""In a bundle: a run's configuration, whose every field is set."""
SHORT: Mapping[str, str] = types.MappingProxyType({
    "method": "adapter.method", "sites": "adapter.sites", "layers": "adapter.layers", "size": SIZE,
    "learning_rate": "train.learning_rate", "model": "model.source", "data": "data.train",
})  # fmt: skip


@cache
def known_fields() -> tuple[str, ...]:
    """Every path that an axis may set."""
    sections = {name: info.annotation for name, info in RunConfig.model_fields.items() if name != "name"}
    paths = [
        f"{name}.{field}" if field else name
        for name, section in sections.items()
        for field in (section.model_fields if isinstance(section, type) and issubclass(section, Strict) else ("",))
    ]
    of_methods = dict.fromkeys(field for method in methods().values() for field in method.model_fields)
    return (*paths, "adapter.method", SIZE, *(f"adapter.{field}" for field in of_methods))


def check_field(path: str) -> str:
    """The full path for a path or its short name.

    Raises:
        ConfigError: it is no field.
    """
    full = SHORT.get(path, path)
    if full not in known_fields():
        section, dot, _ = path.partition(".")
        within = [field for field in known_fields() if field.startswith(f"{section}.")]
        tails = {field.rpartition(".")[2]: field for field in known_fields()}
        likeliest = nearest(path, [*SHORT, *within]) if not dot or within else None
        close = likeliest or tails.get(nearest(path, tails) or "", "")
        sections = dict.fromkeys(field.partition(".")[0] for field in known_fields())
        allowed = within if dot and within else dict.fromkeys([*SHORT, *([close] if close else []), *sections])
        raise ConfigError(
            f"'{path}' names no field of a run", given=path, allowed=allowed, mend=close and f"did you mean '{close}'?"
        )
    return full


def bundle(values: Mapping[str, Any], folder: Path) -> Fields:
    """The fields that a bundle sets, ``from`` a file first.

    Args:
        values: field paths to values.
        folder: where the study's file lies.

    Raises:
        ConfigError: a path is no field, or the file cannot be read.
    """
    source = values.get(FROM)
    first = flat(read_yaml(folder / str(source))) if source is not None else ()
    return (*first, *((check_field(path), value) for path, value in values.items() if path != FROM))


def flat(run: Mapping[str, Any]) -> Fields:
    """A run's configuration as fields; its name is of no account."""
    return tuple(_flat(run))


def _flat(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, value in run.items():
        if section == "name":
            continue
        if isinstance(value, Mapping) and section != "seed":
            yield from ((f"{section}.{field}", inner) for field, inner in value.items())
        else:
            yield section, value


def with_fields(run: dict[str, Any], fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """``run`` with fields set in order; ``adapter.size`` by the field that the method calls so.

    Raises:
        ConfigError: a path leads through a value without fields, or the method has no size.
    """
    result = assign(run, [(path, value) for path, value in fields if path != SIZE])
    for size in (value for path, value in fields if path == SIZE):
        adapter = result.get("adapter", {})
        result = assign(result, [(f"adapter.{size_field(adapter)}", size)])
    return result


def size_field(adapter: Any) -> str:
    """The field of a recipe (plain data) that says how large the adapter is.

    Raises:
        ConfigError: there is none.
    """
    name = adapter.get("method", "lora") if isinstance(adapter, Mapping) else None
    fields = methods()[name].model_fields if isinstance(name, str) and name in methods() else {}
    for field in SIZES:
        if field in fields:
            return field
    raise ConfigError(
        f"the method '{name}' has no size" if name else "a list of methods has no one size",
        mend=f"set the fields themselves ({', '.join(SIZES)})",
    )
