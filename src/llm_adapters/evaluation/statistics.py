"""How sure a score is."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval of a proportion, both ends in [0, 1]."""

    low: float
    high: float


def wilson(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of a proportion (Wilson 1927; without continuity correction).

    With p = correct / total and z the normal quantile of the confidence, its ends are

        (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage near 0 and 1. Nothing is
    known of an empty sample: its interval is [0, 1].

    Raises:
        ValueError: not 0 ≤ correct ≤ total, or not 0 < confidence < 1.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct = {correct} is not between 0 and total = {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is not between 0 and 1")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, shrink = correct / total, 1 + z**2 / total
    centre = (p + z**2 / (2 * total)) / shrink
    half = z * sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / shrink
    # The formula gives 0 and 1 exactly at the two extremes, floating point only almost.
    return Interval(
        0.0 if correct == 0 else max(0.0, centre - half), 1.0 if correct == total else min(1.0, centre + half)
    )
