"""Configuration files and ``--set`` overrides as plain data, before anything is checked against the schema."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.errors import ConfigError, nearest


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings may not name a key twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: named twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as nested dictionaries.

    Raises:
        ConfigError: it is missing, is no YAML, names a key twice, or is no mapping.
    """
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        close = nearest(path.name, [entry.name for entry in folder.glob("*.y*ml")])
        raise ConfigError(
            f"there is no configuration file '{path}'",
            mend=f"did you mean '{folder / close}'?" if close else "check the path",
        )
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise ConfigError(f"'{path}' is not readable as YAML: {failure}") from failure
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' holds a {type(data).__name__}; a configuration is a mapping of sections")
    return data


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """``data`` with ``a.b=value`` assignments applied in order; values are read as YAML.

    Setting ``method`` to another method drops the file's other fields of that method, since they belong to it.

    Raises:
        ConfigError: an assignment has no ``=``, or leads through a value that has no fields.
    """
    values: list[tuple[str, Any]] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.strip().split(".")):
            raise ConfigError(f"--set '{assignment}' is no assignment", mend="--set section.field=value")
        try:
            values.append((path.strip(), yaml.safe_load(text)))
        except yaml.YAMLError as failure:
            raise ConfigError(f"--set '{assignment}': the value is not readable as YAML: {failure}") from failure
        except ValueError as failure:
            raise ConfigError(f"--set '{assignment}': {failure}") from failure
    try:
        return assign(data, values)
    except ConfigError as failure:
        given = next(text for text, (path, _) in zip(assignments, values, strict=True) if path == failure.given)
        raise ConfigError(f"--set '{given}': {failure.problem}", mend=f"--set {failure.mend}") from failure


def assign(data: dict[str, Any], values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """``data`` with the fields ``a.b`` set to values, in order; another ``method`` drops the old one's fields.

    Raises:
        ConfigError: a path leads through a value that has no fields; ``given`` is the path.
    """
    result = _without_other_methods_fields(data, values)
    for path, value in values:
        keys = path.split(".")
        target = result
        for depth, key in enumerate(keys[:-1], start=1):
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                above = ".".join(keys[:depth])
                raise ConfigError(
                    f"'{above}' is {inner!r} and has no fields", given=path, mend=f"{above}=… sets it whole"
                )
            target = inner
        target[keys[-1]] = copy.deepcopy(value)  # a later path may go into it
    return result


def _without_other_methods_fields(data: dict[str, Any], values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """``data`` less the fields of methods that an assignment replaces by another method."""
    result: dict[str, Any] = _copy(data)
    for path, value in values:
        *section, last = path.split(".")
        target: Any = result
        for key in section:
            target = target.get(key) if isinstance(target, dict) else None
        if last == "method" and isinstance(target, dict) and target.get("method", "lora") != value:
            target.clear()
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value
