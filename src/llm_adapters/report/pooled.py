"""The configurations of a study: runs that differ in their seed alone, taken together, with honest intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from llm_adapters.evaluation.outcomes import Outcomes
from llm_adapters.evaluation.statistics import Estimate, Interval, pooled_seeds, wilson
from llm_adapters.report.collect import SEED, Collected, Evaluated, Run

Values = NDArray[np.float64]
DRAWS = 2_000
MEAN = "mean"


@dataclass(frozen=True)
class Result:
    """One configuration on one set, or on the mean of its sets, under one protocol.

    Attributes:
        seeds: how many runs it is the mean of.
        rows: of the set, or of all sets together.
        accuracy: in [0, 1], with its 95 % interval.
        unparsed, cut: shares of all rows of all seeds.
        clean: accuracy on the rows that the training data do not give away; None where those are not known.
        clean_rows: how many those are, on average over the seeds.
    """

    seeds: int
    rows: int
    accuracy: Estimate
    unparsed: float
    cut: float
    clean: Estimate | None
    clean_rows: float | None


@dataclass(frozen=True)
class Configuration:
    """A point of the study without its seed; without ``runs`` it is the bare base.

    Attributes:
        label: its values on the axes that vary, or ``base``.
        axes: its value on every axis but the seed.
        model: source of its base.
        runs: one a seed.
        outcomes: of every run.
        results: by protocol and set; ``mean`` is that over all sets.
    """

    label: str
    axes: dict[str, str]
    model: str
    runs: Sequence[Run]
    outcomes: Sequence[Sequence[Outcomes]]
    results: dict[tuple[str, str], Result]

    @cached_property
    def seeds(self) -> str:
        """How many, in words: one seed says so."""
        return "–" if not self.runs else f"{len(self.runs)} seeds" if len(self.runs) > 1 else "one seed"

    @property
    def method(self) -> str:
        """Its method; ``base`` for the base."""
        return self.runs[0].method if self.runs else "base"


def configurations(found: Collected) -> list[Configuration]:
    """The bases of the study, then its configurations in the order of the study."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in found.runs:
        axes = tuple((axis, value) for axis, value in run.trial.axes.items() if axis != SEED)
        groups.setdefault(axes, []).append(run)
    varying = {axis for key in groups for axis, value in key if any(dict(other).get(axis) != value for other in groups)}
    models = {run.model: run for run in reversed(found.runs) if run.base.scores}
    bases = [
        Configuration(
            "base" if len(models) == 1 else f"base ({model})", {}, model, [], [run.base.outcomes],
            results([run.base]),
        )
        for model, run in reversed(models.items())
    ]  # fmt: skip
    points = [
        Configuration(
            " · ".join(value for axis, value in key if axis in varying) or runs[0].method, dict(key), runs[0].model,
            runs, [run.tuned.outcomes for run in runs], results([run.tuned for run in runs]),
        )
        for key, runs in groups.items()
    ]  # fmt: skip
    return [*bases, *points]


def protocols(points: Sequence[Configuration]) -> list[str]:
    """All protocols, ``standard`` first."""
    found = dict.fromkeys(protocol for point in points for protocol, _ in point.results)
    return sorted(found, key=lambda name: name != "standard")


def benchmarks(points: Sequence[Configuration], protocol: str) -> list[str]:
    """All sets under a protocol, without the mean."""
    names = dict.fromkeys(name for point in points for own, name in point.results if own == protocol)
    return [name for name in names if name != MEAN]


def ranked(points: Sequence[Configuration]) -> list[Configuration]:
    """The trained configurations that were evaluated on every set of the first protocol, the best first."""
    if not (names := protocols(points)):
        return []
    protocol, sets = names[0], benchmarks(points, names[0])
    complete = [p for p in points if p.runs and all((protocol, name) in p.results for name in sets)]
    return sorted(complete, key=lambda point: -point.results[protocol, MEAN].accuracy.value)


def pooled(sets: Sequence[Sequence[Values]], *, crossed: bool, lowest: float = 0.0) -> Estimate:
    """The mean over sets, seeds and rows, and an interval that answers for the rows and, if several, the seeds.

    One set and one seed: Wilson's. Seeds that answer the same rows: :func:`pooled_seeds`. Seeds with rows of their
    own: the same, but the rows' errors of different seeds are independent.

    Args:
        sets: of each set one array a seed, 0 or 1 a row (or a difference of two such).
        crossed: whether all seeds of a set answer the same rows.
        lowest: that a value can be: 0 for shares, -1 for differences. The interval does not leave [lowest, 1].
    """
    if len(sets) == len(sets[0]) == 1 and lowest == 0:
        (values,) = sets[0]
        return Estimate(float(values.mean()), wilson(int(values.sum()), len(values)))
    if crossed:
        return pooled_seeds([np.stack(list(each)) for each in sets], resamples=DRAWS, lowest=lowest)
    seeds = len(sets[0])
    by_seed = np.mean([[values.mean() for values in each] for each in sets], axis=0)  # (S,)
    # Rows that are all alike leave about as much open as half a row of another kind (Jeffreys).
    error = np.mean([sum(max(v.var(), 0.5 / len(v)) / len(v) for v in each) / seeds for each in sets]) / len(sets)
    between = max(0.0, float(by_seed.var(ddof=1)) - float(error))
    random = np.random.default_rng(0)
    draws = by_seed.mean() + sqrt(error / seeds) * random.standard_normal(DRAWS)
    draws += sqrt(between / seeds) * random.standard_t(seeds - 1, DRAWS)
    low, high = np.clip(np.quantile(draws, [0.025, 0.975]), lowest, 1.0)
    return Estimate(float(by_seed.mean()), Interval(float(low), float(high)))


def results(seeds: Sequence[Evaluated]) -> dict[tuple[str, str], Result]:
    """The sets that all seeds answered, and their mean."""
    by_seed = [{(each.protocol, each.benchmark): each for each in one.outcomes} for one in seeds]
    common = [key for key in by_seed[0] if all(key in one for one in by_seed)]
    cuts = Counter[tuple[str, str]]()
    for score in (score for one in seeds for score in one.scores):
        cuts[score.protocol, score.benchmark] += score.cut
    found: dict[tuple[str, str], Result] = {}
    for protocol in dict.fromkeys(protocol for protocol, _ in common):
        keys = [key for key in common if key[0] == protocol]
        for key in keys:
            found[key] = _result([[one[key] for one in by_seed]], cuts[key])
        whole = _result([[one[key] for one in by_seed] for key in keys], sum(cuts[key] for key in keys))
        found[protocol, MEAN] = whole if len(keys) > 1 else found[keys[0]]
    return found


def _result(sets: Sequence[Sequence[Outcomes]], cut: int) -> Result:
    crossed = all(len({each.questions for each in one}) == 1 for one in sets)
    right = [[each.right() for each in one] for one in sets]
    total = sum(len(values) for one in right for values in one)
    masks = [[each.clean() for each in one] for one in sets]
    clean, clean_rows = None, None
    if all(mask is not None for one in masks for mask in one):
        same = crossed and all(len({each.leaked for each in one}) == 1 for one in sets)
        kept = [[values[mask] for values, mask in zip(v, m, strict=True)] for v, m in zip(right, masks, strict=True)]
        clean_rows = sum(len(values) for one in kept for values in one) / len(sets[0])
        if all(len(values) for one in kept for values in one):
            clean = pooled(kept, crossed=same)
    unparsed = sum(each.statuses.count("u") for one in sets for each in one)
    return Result(
        len(sets[0]), total // len(sets[0]), pooled(right, crossed=crossed), unparsed / total, cut / total, clean,
        clean_rows,
    )  # fmt: skip
