"""What changed between two studies: data, template, versions, recipe, and scores beyond their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from llm_adapters.report.collect import Collected, Run
from llm_adapters.report.pooled import MEAN, Configuration, configurations
from llm_adapters.report.reproducibility import facts
from llm_adapters.report.table import Cell, Number, Table, percent

_RECIPE = ("model", "adapter", "data", "train", "evaluate")
Change = tuple[str, str, str, str]
"""(kind, what, there, here); the kinds are trial, recipe, data, template, base, version, machine."""


def drift(old: Collected, new: Collected) -> list[Table]:
    """Tables of what is not as it was: causes first, then scores. Trials are matched by their axes.

    A score is flagged if its interval and the earlier one do not overlap; answers that changed on the same questions
    are counted beside it, since the same rows make even small changes real.
    """
    then, now = ({frozenset(run.trial.axes.items()): run for run in side.runs} for side in (old, new))
    both = [key for key in now if key in then]
    counts = Counter(change for key in both for change in set(_changes(then[key], now[key])))
    rows: list[list[Cell]] = [
        [*change, Number(count, f"{count} of {len(both)}")]
        for change, count in sorted(counts.items(), key=lambda item: item[0][0])
    ]
    for side, there, here in ((then.keys() - now.keys(), "finished", "–"), (now.keys() - then.keys(), "–", "finished")):
        rows += [["trial", ", ".join(value for _, value in sorted(key)), there, here, None] for key in side]
    causes = Table(
        "drift-causes", f"What changed since {old.study.name}", ["kind", "what", "there", "here", "trials"], rows,
        f"{len(both)} trials stand in both studies"
        + ("." if rows else ", with the same recipe, data, template, versions and machine: nothing changed."),
    )  # fmt: skip
    return [causes, _scores(old, new)]


def _changes(then: Run, now: Run) -> Iterator[Change]:
    one, other = ({(kind, name): value for kind, name, value in facts(run)} for run in (then, now))
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield (*key, one.get(key, "–"), other.get(key, "–"))
    for section in _RECIPE:
        a, b = _flat(then.config.get(section), section), _flat(now.config.get(section), section)
        for field in dict.fromkeys([*a, *b]):
            if a.get(field) != b.get(field) and field != "data.template":
                yield "recipe", field, a.get(field, "–"), b.get(field, "–")
    rates = [f"{run.manifest['learning_rate']:g}" for run in (then, now)]
    if rates[0] != rates[1]:
        yield "recipe", "learning rate used", rates[0], rates[1]


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {key: text for field, of in value.items() for key, text in _flat(of, f"{name}.{field}").items()}
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return {key: text for i, each in enumerate(value) for key, text in _flat(each, f"{name}[{i}]").items()}
    return {name: str(value)}


def _scores(old: Collected, new: Collected) -> Table:
    earlier = {_key(point): point for point in configurations(old)}
    rows: list[list[Cell]] = []
    flagged = 0
    for point in configurations(new):
        before = earlier.get(_key(point))
        for (protocol, name), result in point.results.items() if before else ():
            was = before.results.get((protocol, name)) if before else None
            if was is None or before is None or (name == MEAN and len(point.results) == 2):
                continue
            a, b = was.accuracy.interval, result.accuracy.interval
            apart = a.low > b.high or b.low > a.high
            changed = None if name == MEAN else _answers(before, point, protocol, name)
            if not apart and not changed and was.accuracy == result.accuracy:
                continue
            flagged += apart
            rows.append([
                point.label, name, protocol, percent(was.accuracy), percent(result.accuracy),
                Number(changed[0], f"{changed[0]} of {changed[1]}") if changed else None,
                "beyond its interval" if apart else "within",
            ])  # fmt: skip
    rows.sort(key=lambda row: row[-1] == "within")
    heads = ["configuration", "set", "protocol", "there", "here", "outcomes changed", "score"]
    note = (
        f"{flagged} scores are beyond their intervals (95 % intervals that do not overlap). Outcomes changed: rows of "
        "the same question that are right here and were not there, or the reverse; empty where none changed or the "
        "questions are others."
    )
    return Table("drift-scores", f"Scores that differ from {old.study.name}", heads, rows, note if rows else "None.")


def _key(point: Configuration) -> object:
    return frozenset(point.axes.items()) if point.runs else point.model


def _answers(before: Configuration, now: Configuration, protocol: str, name: str) -> tuple[int, int] | None:
    """Changed outcomes and all outcomes, over the seeds that both have; None if none changed or can be paired."""
    then, here = (_by_seed(point, protocol, name) for point in (before, now))
    pairs = [(then[seed], here[seed]) for seed in here if seed in then and then[seed][0] == here[seed][0]]
    changed = sum(x != y for (_, a), (_, b) in pairs for x, y in zip(a, b, strict=True))
    return (changed, sum(len(a) for (_, a), _ in pairs)) if changed else None


def _by_seed(point: Configuration, protocol: str, name: str) -> dict[str, tuple[str, str]]:
    """By seed the digest of the questions, and the outcomes, 1 for right."""
    seeds = [run.seed for run in point.runs] or ["base"]
    return {
        seed: (each.questions, "".join("1" if letter == "c" else "0" for letter in each.statuses))
        for seed, own in zip(seeds, point.outcomes, strict=True)
        for each in own
        if (each.protocol, each.benchmark) == (protocol, name)
    }
