from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.statistics import Interval, wilson

Z = 1.959963985  # the 97.5 % quantile of the normal distribution, from a table


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # z²/(n+z²)
        (10, 10, 0.722467, 1.0),  # n/(n+z²)
        (45, 200, 0.172624, 0.287741),  # centre 0.230183 ± 0.057559
        (1, 2, 0.094531, 0.905469),
    ],
)
def test_known_values(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx(Interval(low, high), abs=2e-6)


def test_the_ends_are_exact_at_the_extremes():
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


def test_nothing_is_known_of_an_empty_sample():
    assert wilson(0, 0) == Interval(0.0, 1.0)


@st.composite
def counts(draw):
    total = draw(st.integers(1, 10_000))
    return draw(st.integers(0, total)), total


@given(counts())
def test_each_end_is_where_the_score_test_just_rejects(pair):
    correct, total = pair
    share = correct / total
    for end in wilson(correct, total):
        assert abs(share - end) == pytest.approx(Z * sqrt(end * (1 - end) / total), abs=1e-6)


@given(counts())
def test_it_is_symmetric_holds_the_share_and_narrows(pair):
    correct, total = pair
    low, high = wilson(correct, total)
    assert low <= correct / total <= high
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low))
    more, less = wilson(10 * correct, 10 * total), wilson(correct, total, confidence=0.5)
    assert more.high - more.low < high - low
    assert less.high - less.low < high - low


@pytest.mark.parametrize(("correct", "total", "confidence"), [(5, 4, 0.95), (-1, 4, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_impossible_counts_are_refused(correct, total, confidence):
    with pytest.raises(ValueError, match="is not between"):
        wilson(correct, total, confidence)
