"""Comparing two adapters on the same rows: exact test, interval of the difference, correction for many sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from llm_adapters.evaluation.statistics import RESAMPLES, Estimate, Interval, macro_mean


def mcnemar_exact(b: int, c: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947).

    Under the null hypothesis each of the b + c rows that only one of the two answers right is as likely to be
    the one's as the other's, so the smaller count follows a binomial distribution with probability ½:

        p = min(1, 2 · P(X ≤ min(b, c))),   X ~ Bin(b + c, ½)

    Args:
        b: rows that only the first answers right.
        c: rows that only the second answers right.

    Raises:
        ValueError: a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts are not negative: b = {b}, c = {c}")
    n = b + c
    ways = tail = 1
    for k in range(min(b, c)):  # whole numbers of any size: exact, where factorials would overflow
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def sign_flips(sets: Sequence[tuple[int, int, int]], *, resamples: int = 100_000, seed: int = 0) -> float:
    """The two-sided p-value of a mean over sets of paired differences, by a permutation test within the sets.

    Under the null hypothesis each row that only one of the two answers right could as well be the other's: its sign is
    flipped with probability ½, and p is the share of such draws, the one seen included, whose mean over sets is as far
    from zero. For one set this is McNemar's exact test, up to the draws.

    Args:
        sets: of each set the rows that only the first answers right, that only the second does, and all.
        resamples: draws.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    seen = sum((b - a) / rows for a, b, rows in sets)
    drawn = sum((2 * random.binomial(a + b, 0.5, resamples) - (a + b)) / rows for a, b, rows in sets)
    return float((1 + np.sum(np.abs(drawn) >= abs(seen) - 1e-12)) / (1 + resamples))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of mean(b) - mean(a) over the same rows, which are drawn in pairs.

    Args:
        a: one value a row, of the first.
        b: of the second, in the same order.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: not the same number of rows, or none.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"pairs are needed: {first.size} rows and {second.size} rows")
    return mean_difference([second - first], confidence=confidence, resamples=resamples, seed=seed).interval


def mean_difference(
    sets: Sequence[ArrayLike], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean over sets of paired differences, each from -1 to 1, rows resampled within sets; see ``macro_mean``."""
    return macro_mean(sets, confidence=confidence, resamples=resamples, seed=seed, lowest=-1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, and none falls below a smaller one's. Rejecting those
    below 0.05 keeps the chance of any false finding among the m below 0.05, whatever their dependence.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
