"""Comparing two adapters on the rows that both answered: per set and overall, with what the numbers allow to say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_adapters.errors import DataError
from llm_adapters.evaluation.paired import holm, mcnemar_exact, mean_difference, paired_bootstrap, sign_flips
from llm_adapters.evaluation.statistics import Estimate, Interval

Rows = Iterable[Mapping[str, Any]]
ALPHA = 0.05
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class SetComparison:
    """One benchmark. ``difference`` and ``interval`` are B - A in points (percent of rows).

    Attributes:
        benchmark: its name.
        rows: answered by both.
        only_a: rows that A alone answers right.
        only_b: rows that B alone answers right.
        accuracy_a: of A on these rows, in [0, 1].
        accuracy_b: of B.
        unparsed_a: rows of A without a readable answer: a change there may be one of style, not of ability.
        unparsed_b: of B.
        difference: B - A.
        interval: its 95 % paired bootstrap interval.
        p: of McNemar's exact test.
        p_corrected: by Holm's method over the sets compared.
    """

    benchmark: str
    rows: int
    only_a: int
    only_b: int
    accuracy_a: float
    accuracy_b: float
    unparsed_a: int
    unparsed_b: int
    difference: float
    interval: Interval
    p: float
    p_corrected: float


@dataclass(frozen=True)
class Comparison:
    """All sets that both answered.

    Attributes:
        sets: one a benchmark, in alphabetical order.
        overall: mean over the sets of B - A in points, with its 95 % interval (rows resampled within sets).
        p: of that mean, by flipping signs at random; of one set alone, of McNemar's exact test.
        left_out: rows that one of the two lacks, or that are another question there.
    """

    sets: tuple[SetComparison, ...]
    overall: Estimate
    p: float
    left_out: int


def compare(rows_a: Rows, rows_b: Rows, *, seed: int = 0) -> Comparison:
    """Compare two adapters by the rows of their prediction files.

    Rows belong together that have the same benchmark, number, question and gold answer. An unparsed row is not
    correct, as in every accuracy here.

    Args:
        rows_a: of one adapter under one protocol; keys ``benchmark``, ``row``, ``status``, and where there are
            any ``question`` and ``gold``.
        rows_b: of the other.
        seed: of the bootstrap.

    Raises:
        DataError: a row lacks a key or stands twice, or the two have no row in common.
    """
    a, b = _by_key(rows_a, "first"), _by_key(rows_b, "second")
    common = sorted(key for key in a.keys() & b.keys())
    if not common:
        raise DataError(
            f"no row is in both: {_counted(a)} on the one side, {_counted(b)} on the other",
            mend="evaluate both on the same benchmarks, with the same rows",
        )
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in common:
        pairs[key[0]].append((a[key], b[key]))
    right = {name: [(x == "correct", y == "correct") for x, y in both] for name, both in pairs.items()}
    counts = {name: Counter(both) for name, both in right.items()}
    p_values = [mcnemar_exact(counts[name][True, False], counts[name][False, True]) for name in pairs]
    sets = []
    for (name, both), p, corrected in zip(pairs.items(), p_values, holm(p_values), strict=True):
        first, second = zip(*right[name], strict=True)
        low, high = paired_bootstrap(first, second, seed=seed)
        only_a, only_b = counts[name][True, False], counts[name][False, True]
        sets.append(SetComparison(
            name, len(both), only_a, only_b, sum(first) / len(both), sum(second) / len(both),
            sum(x == "unparsed" for x, _ in both), sum(y == "unparsed" for _, y in both),
            100 * (only_b - only_a) / len(both), Interval(100 * low, 100 * high), p, corrected,
        ))  # fmt: skip
    value, (low, high) = mean_difference([[y - x for x, y in both] for both in right.values()], seed=seed)
    return Comparison(
        tuple(sets),
        Estimate(100 * value, Interval(100 * low, 100 * high)),
        p_values[0] if len(sets) == 1 else sign_flips([(c.only_a, c.only_b, c.rows) for c in sets], seed=seed),
        left_out=len(a.keys() ^ b.keys()),
    )


def describe(comparison: Comparison, *, a: str = "A", b: str = "B") -> str:
    """What the comparison shows, in plain words; ``a`` and ``b`` name the two.

    A set counts as evidence if its corrected p-value is below 0.05, the mean over the sets if its interval
    leaves zero out.
    """
    found = [each for each in comparison.sets if each.p_corrected < ALPHA]
    rest = [each for each in comparison.sets if each.p_corrected >= ALPHA]
    said = [_better(each.difference, each.interval, a, b, f"on {each.benchmark}") for each in found]
    if rest:
        said.append(_no_evidence(rest, a, b, others=bool(found)))
    lines = [_sentence("; ".join(said))]
    if len(comparison.sets) > 1:
        value, interval = comparison.overall
        where = f"on the mean of the {_word(len(comparison.sets))} sets"
        verdict = _better if interval.low > 0 or interval.high < 0 else _even
        lines.append(_sentence(verdict(value, interval, a, b, where)))
    if comparison.left_out:
        lines.append(f"Left out: {comparison.left_out:,} rows that the two do not share.")
    return "\n".join(lines)


def _better(value: float, interval: Interval, a: str, b: str, where: str) -> str:
    low, high = interval if value > 0 else (-interval.high, -interval.low)
    return f"{b if value > 0 else a} is better {where} by {abs(value):.1f} points, 95 % CI {low:.1f} to {high:.1f}"


def _even(value: float, interval: Interval, a: str, b: str, where: str) -> str:
    return (
        f"no evidence of a difference {where}: {b} - {a} = {value:+.1f} points, "
        f"95 % CI {interval.low:.1f} to {interval.high:.1f}"
    )


def _no_evidence(sets: list[SetComparison], a: str, b: str, *, others: bool) -> str:
    if len(sets) == 1:
        (only,) = sets
        return _even(only.difference, only.interval, a, b, f"on {only.benchmark}")
    return f"no evidence on the other {_word(len(sets))}" if others else f"no evidence on any of the {_word(len(sets))}"


def _by_key(rows: Rows, which: str) -> dict[tuple[str, int, str, str], str]:
    found: dict[tuple[str, int, str, str], str] = {}
    for row in rows:
        missing = [key for key in ("benchmark", "row", "status") if key not in row]
        if missing:
            raise DataError(f"a row of the {which} lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
        key = (str(row["benchmark"]), row["row"], str(row.get("question", "")), str(row.get("gold", "")))
        if key in found:
            raise DataError(
                f"row {key[1]} of {key[0]} stands twice in the {which}", mend="compare one adapter under one protocol"
            )
        found[key] = row["status"]
    return found


def _counted(rows: Mapping[tuple[str, int, str, str], str]) -> str:
    counts = Counter(key[0] for key in rows)
    return ", ".join(f"{count:,} of {name}" for name, count in sorted(counts.items())) or "none"


def _sentence(text: str) -> str:
    return re.sub("^no ", "No ", text) + "."


def _word(number: int) -> str:
    return _WORDS[number] if number < len(_WORDS) else str(number)
