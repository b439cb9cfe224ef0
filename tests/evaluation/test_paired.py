from fractions import Fraction
from math import comb, erfc, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.paired import holm, mcnemar_exact, mean_difference, paired_bootstrap, sign_flips
from llm_adapters.evaluation.statistics import pooled_seeds


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [  # 2 · (sum of the binomial coefficients up to the smaller) / 2^n, by hand
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (0, 6, 2 / 64),
        (1, 7, 2 * (1 + 8) / 256),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 1.0),
        (5, 6, 1.0),
    ],
)
def test_known_p_values(b, c, p):
    assert mcnemar_exact(b, c) == p


@given(st.integers(0, 120), st.integers(0, 120))
def test_it_is_the_binomial_tail(b, c):
    n = b + c
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(b, c) + 1))
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == float(min(Fraction(1), 2 * tail))


def test_large_counts_neither_overflow_nor_vanish():
    assert mcnemar_exact(0, 9000) == 0.0  # below the smallest double
    z = (4400 - 4000 - 1) / sqrt(8400)  # the normal approximation, with continuity correction
    assert mcnemar_exact(4000, 4400) == pytest.approx(erfc(z / sqrt(2)), rel=0.02)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        mcnemar_exact(-1, 2)


def test_pairs_make_the_interval_narrow():
    hard = np.arange(1000) % 2 == 0
    a, b = hard.copy(), hard.copy()
    b[1:101:2] = True  # B answers fifty more, and loses none
    low, high = paired_bootstrap(a, b)
    spread = 1.96 * np.sqrt(0.05 * 0.95 / 1000)
    assert (low, high) == pytest.approx((0.05 - spread, 0.05 + spread), abs=2e-3)
    assert paired_bootstrap(b, a) == pytest.approx((-high, -low), abs=2e-3)
    shuffled = np.random.default_rng(0).permutation(b)
    unpaired = paired_bootstrap(a, shuffled)
    assert unpaired.high - unpaired.low > 3 * (high - low)


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits, trials = 0, 400
    for trial in range(trials):
        skill = rng.random(200)
        a, b = rng.random(200) < skill, rng.random(200) < np.minimum(1, skill + 0.1)
        low, high = paired_bootstrap(a, b, resamples=500, seed=trial)
        hits += low <= 0.095 <= high  # 0.1 · 0.9 + the mean of 1 - skill above 0.9, times its share: 0.005
    assert 0.92 <= hits / trials <= 0.98


def test_unequal_rows_are_refused():
    with pytest.raises(ValueError, match="2 rows and 3 rows"):
        paired_bootstrap([1, 0], [1, 0, 1])


def test_rows_that_all_agree_leave_open_what_so_few_cannot_show() -> None:
    low, high = paired_bootstrap([1, 0] * 50, [1, 0] * 50)
    assert 0.015 < high < 0.03  # Jeffreys' posterior after 100 rows, either way
    assert low == pytest.approx(-high, rel=0.1)
    assert mean_difference([[0] * 100, [0] * 300]).interval.high < high
    one = mean_difference([[1] * 100]).interval
    assert 0.9 < one.low < 0.97 < one.high == 1


def test_differences_that_never_fall_may_still_be_below_zero() -> None:
    seeds = [[1] * 6 + [0] * 94, [1] + [0] * 99]  # two seeds that differ, in which nothing was lost
    assert pooled_seeds([seeds], lowest=-1.0).interval.low < 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p)
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert [q for _, q in pairs] == sorted(corrected)


def test_holm_keeps_false_findings_rare():
    rng = np.random.default_rng(0)
    false = sum(min(holm(list(rng.random(6)))) < 0.05 for _ in range(2000))
    assert 0.035 <= false / 2000 <= 0.062


def test_sign_flips_are_mcnemars_test_on_one_set_and_follow_the_mean_on_several():
    for a, b, rows in ((8, 30, 200), (3, 3, 50), (0, 6, 20)):
        assert sign_flips([(a, b, rows)]) == pytest.approx(mcnemar_exact(a, b), abs=0.005)
    # Many rows for B in a large set, few but most of a small set for A: the mean is A's, and its p tells of that mean.
    p = sign_flips([(0, 30, 1000), (8, 0, 20)])
    assert p == pytest.approx(0.008, abs=0.004)
    assert sign_flips([(5, 5, 10), (2, 2, 10)]) == 1.0
