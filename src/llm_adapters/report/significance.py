"""Paired tests between the leading configurations, and between them and the base."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from llm_adapters.evaluation.compare import ALPHA
from llm_adapters.evaluation.outcomes import Outcomes
from llm_adapters.evaluation.paired import holm, mcnemar_exact
from llm_adapters.report.pooled import Configuration, pooled, protocols, ranked
from llm_adapters.report.table import Cell, Number, Table, percent

LEADING = 5
Pairs = dict[str, list[tuple[Outcomes, Outcomes]]]
"""By set the outcomes of both on the same questions, one pair a seed."""


def significance(points: Sequence[Configuration]) -> Table | None:
    """Every pair of the leading configurations and their base, on the same rows; None where nothing can be paired."""
    leading = ranked(points)[:LEADING]
    bases = [point for point in points if not point.runs and any(point.model == each.model for each in leading)]
    names = protocols(points)
    chosen = [
        (a, b, found) for a, b in combinations([*bases, *leading], 2) if (found := pairs(a, b, names[0]))
    ]  # fmt: skip
    if not chosen:
        return None
    tested = [_p_values(found) for _, _, found in chosen]
    corrected = holm([p for p, _ in tested])
    rows: list[list[Cell]] = []
    for (a, b, found), (p, by_set), p_corrected in zip(chosen, tested, corrected, strict=True):
        seeds = len(next(iter(found.values())))
        differences = [[y.right() - x.right() for x, y in of] for of in found.values()]
        crossed = all(len({x.questions for x, _ in of}) == 1 for of in found.values())
        evidence = [name for name, value in zip(found, holm(by_set), strict=True) if value < ALPHA]
        rows.append([
            a.label, b.label, "one seed" if seeds == 1 else f"{seeds} seeds",
            percent(pooled(differences, crossed=crossed, lowest=-1.0), sign=True), Number(p, f"{p:.2g}"),
            Number(p_corrected, f"{p_corrected:.2g}"), ", ".join(evidence) or "none",
        ])  # fmt: skip
    note = (
        f"The {len(leading)} configurations with the highest mean and their base, protocol {names[0]}; runs of the "
        "same seed are compared on the same rows. p: McNemar's exact test on the rows of all sets, of several seeds "
        "the largest, so that a small p means a difference in every seed; then Holm's correction over the pairs. Sets "
        "with evidence: the same within the pair, corrected over its sets. The interval is a paired bootstrap over "
        "rows, with the error of the seeds if there are several. Leaders are chosen on the rows they are tested on."
    )
    heads = ["A", "B", "seeds", "B - A, points", "p", "p, Holm", "sets with evidence"]
    return Table("significance", "Paired tests of the leading configurations", heads, rows, note)


def pairs(a: Configuration, b: Configuration, protocol: str) -> Pairs:
    """What both answered: runs of the same seed, on the same questions; the base stands beside each run of its own."""
    by_seed = [
        {run.seed: own for run, own in zip(point.runs, point.outcomes, strict=True)}
        if point.runs
        else {run.seed: run.base.outcomes for run in other.runs if run.model == point.model}
        for point, other in ((a, b), (b, a))
    ]
    seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
    found: Pairs = {}
    for seed in seeds:
        first, second = ({o.benchmark: o for o in side[seed] if o.protocol == protocol} for side in by_seed)
        for name in first:
            if name in second and first[name].questions == second[name].questions:
                found.setdefault(name, []).append((first[name], second[name]))
    return {name: of for name, of in found.items() if len(of) == len(seeds)}


def _p_values(found: Pairs) -> tuple[float, list[float]]:
    """Over all sets and of each set, the largest p-value of any seed."""
    counts = np.array([
        [_only(x, y) for x, y in of] for of in found.values()
    ])  # (sets, seeds, 2)  # fmt: skip
    whole = max(mcnemar_exact(int(b), int(c)) for b, c in counts.sum(axis=0))
    return whole, [max(mcnemar_exact(int(b), int(c)) for b, c in of) for of in counts]


def _only(x: Outcomes, y: Outcomes) -> tuple[int, int]:
    difference = y.right() - x.right()
    return int((difference < 0).sum()), int((difference > 0).sum())
