"""Strict records: unknown fields, wrong types and out-of-range values are all reported at once, in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_adapters.errors import ConfigError, UserError, nearest

Mistakes = list[tuple[str, str]]


class Strict(BaseModel):
    """A frozen record without unknown fields; base of every configuration section and every method."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(
        cls,
        data: Mapping[str, Any],
        *,
        where: str,
        error: type[UserError] = ConfigError,
        context: dict[str, Any] | None = None,
    ) -> Self:
        """Build the record, or raise ``error`` with every mistake in ``data``, one line each.

        Args:
            data: field names to values.
            where: what is being read, for the message: a file, ``method 'lora'``.
            context: handed to the validators.
        """
        try:
            return cls.model_validate(dict(data), context=context)
        except ValidationError as failure:
            problems = [_explain(cls, issue) for issue in failure.errors()]
        if len(problems) == 1:
            raise error(f"{where}: {problems[0]}")
        raise error(f"{where}: {len(problems)} mistakes\n{listed(problems)}")

    @classmethod
    def attempt(cls, data: Mapping[str, Any], *, context: dict[str, Any] | None = None) -> tuple[Self | None, Mistakes]:
        """The record, or None and its mistakes: the first part of the field that each stands in, and a sentence."""
        try:
            return cls.model_validate(dict(data), context=context), []
        except ValidationError as failure:
            return None, [(str((*issue["loc"], "")[0]), _explain(cls, issue)) for issue in failure.errors()]


def listed(problems: Iterable[str]) -> str:
    """Mistakes, one a line."""
    return "\n".join(f"  - {problem}".replace("\n", "\n    ") for problem in problems)


def _explain(record: type[BaseModel], issue: Any) -> str:
    """One mistake in one sentence: where, what was given, what is allowed, the nearest match."""
    path = [part for part in issue["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    field = ".".join(str(part) for part in path)
    given = issue["input"]
    if issue["type"] == "extra_forbidden":
        known = _fields_at(record, path[:-1])
        close = _namesake(record, str(path[-1])) or nearest(str(path[-1]), known)
        hint = f"; nearest: {close}" if close else ""
        return f"unknown field '{field}' (given {given!r}); allowed: {', '.join(known)}{hint}"
    if issue["type"] == "missing":
        return f"field '{field}' is missing"
    message = issue["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not field:
        return message
    if isinstance(issue.get("ctx", {}).get("error"), UserError):
        return f"field '{field}': {message}"
    if issue["type"] == "literal_error":
        close = nearest(str(given), re.findall("'([^']*)'", issue["ctx"]["expected"]))
        message += f"; nearest: {close}" if close else ""
    return f"field '{field}' is {given!r}: {message}"


def _namesake(record: type[BaseModel], name: str) -> str | None:
    """Where a field of this name stands: at the top, or in the one section that has it."""
    if name in record.model_fields:
        return name
    sections = [section for section in record.model_fields if name in _fields_at(record, [section])]
    return f"{sections[0]}.{name}" if len(sections) == 1 else None


def _fields_at(record: type[BaseModel], path: list[Any]) -> list[str]:
    """The field names of the record that ``path`` leads to, as far as the types tell."""
    for part in path:
        info = record.model_fields.get(str(part))
        nested = [t for t in (info.annotation, *_arguments(info.annotation)) if _is_record(t)] if info else []
        if not nested:
            return []
        record = nested[0]
    return list(record.model_fields)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
