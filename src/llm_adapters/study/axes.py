"""Axes: what may be varied, in every way that a study file may write it, and the combinations that follow."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters.config.strict import Strict
from llm_adapters.data.seeding import pick
from llm_adapters.errors import ConfigError
from llm_adapters.study.fields import Fields, bundle, check_field

Labels = Mapping[str, str]
Rule = Mapping[str, tuple[str, ...]]
"""Labels by axis; a combination fits if it has one of them on every axis named."""
Combination = tuple[dict[str, str], Fields]


class Range(Strict):
    """Any value between two, for random and adaptive search; ``log`` draws its logarithm evenly."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def draw(self, rng: random.Random) -> float | int:
        """A value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + (high - low) * rng.random()
        value = math.exp(value) if self.log else value
        return round(value) if self.integer else float(f"{value:.4g}")


@dataclass(frozen=True)
class Block:
    """Values of an axis, for the combinations that fit ``when``: labelled ones, or a range of the field ``path``."""

    when: Rule
    values: Mapping[str, Fields]
    range: Range | None = None
    path: str = ""


def read_axis(axis: str, raw: object, folder: Path) -> tuple[Block, ...]:
    """An axis from a study file: a list of values, a mapping of labels, or blocks ``{when, values | range}``.

    Raises:
        ConfigError: it names no field, has no value, or has two of one label.
    """
    blocks = raw if isinstance(raw, list) and raw and all(_is_block(part) for part in raw) else [raw]
    return tuple(_block(axis, part, folder) for part in blocks)


def read_rule(raw: Mapping[str, Any], axes: Mapping[str, Sequence[Block]], where: str) -> Rule:
    """Labels by axis.

    Raises:
        ConfigError: there is no such axis, or it has no such label.
    """
    rule = {}
    for axis, given in raw.items():
        if axis not in axes:
            raise ConfigError(f"{where}: there is no axis '{axis}' (above)", given=axis, allowed=axes)
        rule[axis] = tuple(label(value) for value in (given if isinstance(given, list) else [given]))
        known = dict.fromkeys(name for block in axes[axis] for name in block.values)
        for name in rule[axis]:
            if name not in known and not any(block.range for block in axes[axis]):
                raise ConfigError(f"{where}: axis '{axis}' has no value '{name}'", given=name, allowed=known)
    return rule


def fits(labels: Labels, rule: Rule) -> bool:
    """Whether a combination has one of the rule's labels on every axis that the rule names."""
    return all(labels.get(axis) in allowed for axis, allowed in rule.items())


def grid(axes: Mapping[str, Sequence[Block]]) -> list[Combination]:
    """Every combination; an axis of which no block applies is left out of it."""
    found: list[Combination] = [({}, ())]
    for axis, blocks in axes.items():
        found = [
            ({**labels, axis: name} if name else labels, (*fields, *more))
            for labels, fields in found
            for name, more in (_choices(blocks, labels) or {"": ()}).items()
        ]
    return found


def draw(axes: Mapping[str, Sequence[Block]], rng: random.Random) -> Combination:
    """One combination at random."""
    labels: dict[str, str] = {}
    fields: Fields = ()
    for axis, blocks in axes.items():
        options: list[tuple[str, Fields] | Block] = list(_choices(blocks, labels).items())
        options += [block for block in blocks if block.range and fits(labels, block.when)]
        if not options:
            continue
        chosen = pick(rng, options)
        if isinstance(chosen, Block):
            assert chosen.range is not None
            value = chosen.range.draw(rng)
            chosen = (label(value), ((chosen.path, value),))
        labels[axis] = chosen[0]
        fields = (*fields, *chosen[1])
    return labels, fields


def label(value: object) -> str:
    """How a value is called in tables."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "+".join(map(label, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _choices(blocks: Sequence[Block], labels: Labels) -> dict[str, Fields]:
    return {name: fields for block in blocks if fits(labels, block.when) for name, fields in block.values.items()}


def _is_block(raw: object) -> bool:
    return isinstance(raw, dict) and bool(raw) and raw.keys() <= {"when", "values", "range"} and raw.keys() != {"when"}


def _block(axis: str, raw: object, folder: Path) -> Block:
    if not isinstance(raw, dict) or not _is_block(raw):
        return Block({}, _values(axis, raw, folder))
    when = {name: tuple(map(label, given if isinstance(given, list) else [given]))
            for name, given in raw.get("when", {}).items()}  # fmt: skip
    if "range" not in raw:
        return Block(when, _values(axis, raw["values"], folder))
    if "values" in raw:
        raise ConfigError(f"axis '{axis}' has values and a range", mend="two blocks, or one of them")
    limits = Range.parse(raw["range"] if isinstance(raw["range"], dict) else {}, where=f"axis '{axis}'")
    if limits.low >= limits.high or (limits.log and limits.low <= 0):
        raise ConfigError(f"axis '{axis}': nothing lies between {limits.low:g} and {limits.high:g}", mend="low < high")
    return Block(when, {}, limits, check_field(axis))


def _values(axis: str, raw: object, folder: Path) -> dict[str, Fields]:
    if isinstance(raw, dict):
        pairs = [(label(name), value) for name, value in raw.items()]
    else:
        pairs = [(label(value), value) for value in (raw if isinstance(raw, list) else [raw])]
    if not pairs:
        raise ConfigError(f"axis '{axis}' has no values", mend="give it some, or leave it out")
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"axis '{axis}' has a value twice: {', '.join(twice)}", mend="name it once")
    # A bundle sets fields by their paths; under the path of a field a mapping is that field's value.
    bundled = "." not in axis and axis != "adapter"
    return dict(_fields(axis, pairs, folder, bundled=bundled))


def _fields(
    axis: str, pairs: Sequence[tuple[str, Any]], folder: Path, *, bundled: bool
) -> Iterator[tuple[str, Fields]]:
    for name, value in pairs:
        if bundled and isinstance(value, dict):
            yield name, bundle(value, folder)
        else:
            yield name, ((check_field(axis), value),)
