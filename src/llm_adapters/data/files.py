"""Reading examples from a data file."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from llm_adapters.data.example import Example
from llm_adapters.errors import DataError

SUFFIXES = (".json", ".jsonl", ".json.xz", ".jsonl.xz")
MOST_ERRORS = 10
KEYS = ("instruction", "input", "output", "answer")
SCHEMA = "a row has the strings instruction, output (to train on), answer (to be scored against) and, if any, input"


def load_examples(path: str | Path) -> list[Example]:
    """All rows of a ``.json`` (one list) or ``.jsonl`` (one object a line) file, either also xz-compressed.

    Raises:
        DataError: the file is missing, unreadable, empty, or has malformed rows (the first ten are named).
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        allowed = [f"PATH{suffix}" for suffix in SUFFIXES]
        raise DataError(f"'{path}' is not a data file", given=str(path), allowed=allowed)
    return parse_examples(path, read_content(path))


def read_content(path: Path) -> bytes:
    """What a file holds, decompressed where it is an ``.xz``.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        raw = path.read_bytes()
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except (OSError, lzma.LZMAError) as error:
        raise _unreadable(path, error) from None


def parse_examples(path: Path, content: bytes) -> list[Example]:
    """The rows in ``content``; ``path`` tells its format, and stands in every message.

    Raises:
        DataError: there are no rows, or malformed ones.
    """
    examples: list[Example] = []
    errors: list[str] = []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    for place, row in _rows(path, text):
        problems = [str(row)] if isinstance(row, json.JSONDecodeError) else _problems(row)
        errors += [f"  {place}: {problem}" for problem in problems]
        if isinstance(row, dict) and not problems:
            known = {key: row.get(key, "") for key in KEYS}
            examples.append(Example(**known, meta={key: row[key] for key in row.keys() - known.keys()}))
    if errors:
        shown = errors[:MOST_ERRORS]
        if len(errors) > MOST_ERRORS:
            shown.append(f"  and {len(errors) - MOST_ERRORS} more")
        raise DataError("\n".join([f"{path}: {len(errors)} mistakes in its rows", *shown]), mend=SCHEMA)
    if not examples:
        raise DataError(f"{path}: the file has no rows", mend=SCHEMA)
    return examples


def _problems(row: object) -> list[str]:
    """What is wrong with a parsed row, one sentence a mistake."""
    if not isinstance(row, dict):
        return [f"is a {type(row).__name__}, not an object"]
    listed = f"(its keys: {', '.join(row) or 'none'})"
    missing = [] if "instruction" in row else [f"has no 'instruction' {listed}"]
    if "output" not in row and "answer" not in row:
        missing.append(f"has neither 'output' nor 'answer' {listed}")
    mistyped = [
        f"'{key}' is {json.dumps(row[key])[:40]}, not a string"
        for key in KEYS
        if key in row and not isinstance(row[key], str)
    ]
    return missing + mistyped


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Place and value of every row; a line of a .jsonl that is no JSON comes as its error."""
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    yield f"line {number}", error
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error}", mend="name it .jsonl if each line is an object") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}, not one list of rows", mend=SCHEMA)
    yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read: {error}", mend="a data file is UTF-8 text, .xz if compressed")


def _missing(path: Path) -> DataError:
    """Names what is there instead, in the deepest folder of the path that exists."""
    folder, name = path.parent, path.name
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or entry.name.endswith(SUFFIXES))
    return DataError(f"{path} does not exist: '{folder}' has no '{name}'", given=name, allowed=there)
