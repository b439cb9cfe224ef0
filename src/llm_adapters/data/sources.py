"""Examples by name: of a built-in generator, of the registry of benchmarks, or of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_adapters.data.example import Example, Split
from llm_adapters.data.files import SUFFIXES, load_examples
from llm_adapters.data.mixtures import load_mixture, sampled
from llm_adapters.data.registry import BENCHMARKS, FILES, load_benchmark
from llm_adapters.data.registry_table import RECIPES
from llm_adapters.data.word_problems import word_problems
from llm_adapters.errors import DataError

__all__ = ["BUILT_IN", "SUFFIXES", "load_examples", "load_numbered", "load_source"]

BUILT_IN: dict[str, Callable[[Split, int, int], list[Example]]] = {"word-problems": word_problems}
GENERATED = 1000
"""Training examples that a generator makes where nobody says how many."""
MIXTURES = (*(name for name in FILES if "/" not in name), *RECIPES)


def load_source(name_or_path: str | Path, *, split: Split, size: int | None = None, seed: int = 0) -> list[Example]:
    """Examples of a built-in source, of a registered benchmark or mixture, or of a file.

    A registered name wins over a file or folder of that name; ``./gsm8k.json`` is always a path.

    Args:
        name_or_path: ``word-problems``; a benchmark (``gsm8k``), one of its files (``piqa/train_full``) or a
            training mixture (``math``, ``commonsense``, ``math10k``, ``commonsense170k``); or the path of a data file.
        split: which side of a built-in source or a benchmark; a file is one side already, and is read whole.
        size: how many examples. Of a generator None means 1,000 for training; of a file None means all, otherwise
            a sample drawn by ``seed``, in the order of the file. With one seed a smaller sample is part of a larger.
        seed: what the generator, or the sample, is drawn with.

    Raises:
        DataError: unknown source, unreadable file, or more examples asked than there are.
    """
    return [example for _, example in load_numbered(name_or_path, split=split, size=size, seed=seed)]


def load_numbered(
    name_or_path: str | Path, *, split: Split, size: int | None = None, seed: int = 0
) -> list[tuple[int, Example]]:
    """What :func:`load_source` gives, each example with its place in the whole file (or generator), from 0."""
    if size is not None and size < 1:
        raise DataError(f"size of source '{name_or_path}' is {size}", mend="give a size of 1 or more")
    generator = BUILT_IN.get(str(name_or_path))
    if generator is not None:
        size = size or (GENERATED if split == "train" else None)
        if size is None:
            raise DataError(f"'{name_or_path}' generates any number of examples", mend="say how many: size: 1000")
        return list(enumerate(generator(split, size, seed)))

    examples = _all(name_or_path, split)
    if size is None:
        return list(enumerate(examples))
    if size > len(examples):
        raise DataError(
            f"{name_or_path}: {size} examples were asked for, there are {len(examples)}",
            mend=f"set size: {len(examples)}, or leave it out to take them all",
        )
    return [(place, examples[place]) for place in sampled(len(examples), size, seed)]


def _all(name_or_path: str | Path, split: Split) -> list[Example]:
    """Every example of a registered name or a file."""
    name = str(name_or_path)
    if name in MIXTURES and split == "test":
        raise DataError(f"'{name}' is a training mixture; it has no test side", allowed=BENCHMARKS)
    if name in RECIPES:
        return load_mixture(name)
    if name in FILES or name in BENCHMARKS:
        return load_benchmark(name, split)
    if not name.endswith(SUFFIXES):
        if Path(name).is_file():
            raise DataError(
                f"'{name}' is no data file: its name ends in none of {', '.join(SUFFIXES)}",
                mend="one JSON object a line, saved as .jsonl; CSV and others are not read",
            )
        raise DataError(
            f"'{name}' is neither a data file nor a known source",
            given=name,
            allowed=[*BUILT_IN, *BENCHMARKS, *MIXTURES, *(f"PATH{suffix}" for suffix in SUFFIXES)],
        )
    return load_examples(name_or_path)
