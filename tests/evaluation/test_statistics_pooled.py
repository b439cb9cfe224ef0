import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.statistics import macro_mean, pooled_seeds

Z = 1.959963985


def answers(correct: int, total: int) -> list[bool]:
    return [True] * correct + [False] * (total - correct)


def test_every_set_has_the_same_weight_whatever_its_size():
    assert macro_mean([answers(1, 2), answers(1000, 1000)]).value == 0.75


def test_the_interval_is_the_normal_one_where_that_is_good():
    sets = [answers(300, 1000), answers(500, 800)]
    spread = np.sqrt(0.3 * 0.7 / 1000 + 0.625 * 0.375 / 800) / 2
    value, (low, high) = macro_mean(sets, resamples=40_000)
    assert value == 0.4625
    assert (low, high) == pytest.approx((value - Z * spread, value + Z * spread), abs=4e-4)
    narrow = macro_mean(sets, confidence=0.5, resamples=40_000).interval
    assert narrow.high - narrow.low == pytest.approx(2 * 0.67449 * spread, rel=0.05)


def test_the_interval_depends_on_the_seed_alone():
    sets = [answers(317, 1003), answers(50, 77)]
    assert macro_mean(sets, seed=1) == macro_mean(sets, seed=1)
    assert macro_mean(sets, seed=1) != macro_mean(sets, seed=2)
    assert macro_mean([sorted(rows) for rows in sets], seed=1) == macro_mean(sets, seed=1)  # rows have no order


def test_differences_may_be_negative():
    rows = [-1.0] * 40 + [0.0] * 40 + [1.0] * 20
    value, (low, high) = macro_mean([rows], lowest=-1.0)
    assert value == pytest.approx(-0.2)
    spread = np.sqrt((0.6 - 0.04) / 100)
    assert (low, high) == pytest.approx((-0.2 - Z * spread, -0.2 + Z * spread), abs=0.015)
    with pytest.raises(ValueError, match=r"from 0\.0 to 1"):
        macro_mean([rows])


def test_one_seed_is_the_mean_over_rows():
    rows = answers(30, 100)
    assert pooled_seeds([[rows]]) == macro_mean([rows])


def test_seeds_that_agree_on_every_row_add_nothing():
    rows = answers(30, 100)
    assert pooled_seeds([[rows, rows, rows]]).interval == pytest.approx(macro_mean([rows]).interval)


def test_seeds_that_differ_widen_the_interval_as_students_t_does():
    rows = 100_000  # so that the rows add next to nothing
    shares = [0.4, 0.5, 0.6]
    value, (low, high) = pooled_seeds([[answers(int(share * rows), rows) for share in shares]], resamples=200_000)
    half = 4.302653 * 0.1 / np.sqrt(3)  # the 97.5 % quantile of Student's distribution with 2 degrees of freedom
    assert value == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_what_rows_explain_is_not_counted_again_as_a_difference_of_seeds():
    rng = np.random.default_rng(0)
    sets = [np.array([rng.permutation(answers(106, 200)), rng.permutation(answers(94, 200))]) for _ in range(2)]
    noise = (
        sum(np.var(one * 1.0 - other, ddof=1) / 2 / 200 for one, other in sets) / 4
    )  # of a seed's mean over the sets
    between = 2 * 0.03**2 - noise
    assert 0.2 < noise / 0.0018 < 0.8
    low, high = pooled_seeds(sets, resamples=200_000).interval
    half = 12.7062 * np.sqrt(between / 2)  # Student's distribution with 1 degree of freedom
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), rel=0.06)
    alike = [answers(100, 200), answers(101, 200)[::-1]]
    assert pooled_seeds([alike]).interval == pytest.approx(macro_mean([np.mean(alike, axis=0)]).interval)


def test_seeds_are_the_same_across_sets():
    good, bad = answers(60, 100), answers(40, 100)
    rng = np.random.default_rng(0)
    sets = [[rng.permutation(good), rng.permutation(bad)] for _ in range(4)]
    crossed = [sets[0], sets[1][::-1], sets[2], sets[3][::-1]]  # each seed is good on two sets and bad on two
    together, balanced = pooled_seeds(sets).interval, pooled_seeds(crossed).interval
    assert together.high - together.low > 3 * (balanced.high - balanced.low)


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.0), (3, 0.1), (3, 0.3), (5, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, spread):
    rng = np.random.default_rng(seeds)
    noise = np.random.default_rng(1).normal(0, np.hypot(spread, 1.5), 400_000)
    truth, hits, trials = np.mean(1 / (1 + np.exp(-noise))), 0, 300
    for trial in range(trials):
        logit = rng.normal(0, 1.5, 200) + rng.normal(0, spread, (seeds, 1))
        correct = rng.random((seeds, 200)) < 1 / (1 + np.exp(-logit))
        low, high = pooled_seeds([correct], resamples=500, seed=trial).interval
        hits += low <= truth <= high
    assert 0.9 <= hits / trials <= 0.995


def test_the_macro_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares, sizes, hits, trials = (0.2, 0.5, 0.9), (150, 80, 300), 0, 400
    for trial in range(trials):
        sets = [rng.random(size) < share for share, size in zip(shares, sizes, strict=True)]
        low, high = macro_mean(sets, resamples=500, seed=trial).interval
        hits += low <= np.mean(shares) <= high
    assert 0.92 <= hits / trials <= 0.98


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=4))
def test_the_interval_holds_the_value_and_stays_within_bounds(sets):
    value, (low, high) = macro_mean(sets, resamples=200)
    assert value == pytest.approx(np.mean([np.mean(rows) for rows in sets]))
    assert -1e-12 <= low <= high <= 1 + 1e-12


@pytest.mark.parametrize("sets", [[], [[]], [[[]]], [[[1.0], [1.0]], [[1.0]]]])
def test_tables_that_do_not_fit_are_refused(sets):
    with pytest.raises(ValueError, match="seeds by rows"):
        pooled_seeds(sets)


def test_an_impossible_confidence_is_refused():
    with pytest.raises(ValueError, match="not between 0 and 1"):
        macro_mean([[1.0]], confidence=1.0)


def test_two_seeds_never_give_an_accuracy_beyond_its_range():
    low, high = np.repeat([1.0, 0.0], [80, 120]), np.repeat([1.0, 0.0], [130, 70])
    estimate = pooled_seeds([np.stack([low, high])])
    assert estimate.value == pytest.approx(0.525)
    assert estimate.interval == (0.0, 1.0)
