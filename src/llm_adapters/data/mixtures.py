"""Training mixtures, made from their parts when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm_adapters.data.example import Example
from llm_adapters.data.registry import FILES, load_file, locate, missing
from llm_adapters.data.registry_table import RECIPES
from llm_adapters.data.seeding import shuffled, stable_random

_SEED = 42


def load_mixture(name: str) -> list[Example]:
    """All rows of a recipe's parts, one part after the other; ``meta`` names the part as ``source``.

    ``math10k`` is GSM8K, MAWPS and 1000 rows of AQuA, ``commonsense170k`` the eight commonsense training sets: the
    questions of the paper. The rationales of its Math10K were written by a language model and are not these.
    Neither is decontaminated: ``math10k`` holds most of AddSub, SingleEq and MultiArith. Clean ones are the files
    ``math`` and ``commonsense``.

    Raises:
        DataError: parts are missing (all are named at once) or damaged.
    """
    parts = [(FILES[part], size) for part, size in RECIPES[name]]
    if absent := [file for file, _ in parts if locate(file) is None]:
        raise missing(absent)
    rows: list[Example] = []
    for file, size in parts:
        examples = load_file(file)
        examples = examples if size is None else sample(examples, size, _SEED)
        rows += [replace(row, meta={**row.meta, "source": file.name.split("/")[0]}) for row in examples]
    return rows


def sample(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    """``size`` of the examples, in their order; with one seed a smaller sample is part of a larger one."""
    return [examples[place] for place in sampled(len(examples), size, seed)]


def sampled(count: int, size: int, seed: int) -> list[int]:
    """Which of ``count`` rows :func:`sample` takes."""
    return sorted(shuffled(stable_random("sample", seed), range(count))[:size])
