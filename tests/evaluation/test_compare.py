from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.errors import DataError
from llm_adapters.evaluation.compare import compare, describe
from llm_adapters.evaluation.paired import mcnemar_exact


def rows(benchmark, statuses, **fields):
    short = {"c": "correct", "w": "wrong", "u": "unparsed"}
    return [
        {"benchmark": benchmark, "row": i, "status": short[status], "question": f"q{i}", "gold": "1", **fields}
        for i, status in enumerate(statuses)
    ]


def test_one_set_by_hand():
    both, only_a, only_b, neither = 50, 10, 30, 10
    a = rows("gsm8k", "c" * both + "c" * only_a + "w" * only_b + "u" * neither)
    b = rows("gsm8k", "c" * both + "w" * only_a + "c" * only_b + "w" * neither)
    (found,) = compare(a, b).sets
    assert (found.rows, found.only_a, found.only_b) == (100, 10, 30)
    assert (found.accuracy_a, found.accuracy_b, found.unparsed_a, found.unparsed_b) == (0.6, 0.8, 10, 0)
    assert found.difference == 20.0
    assert found.p == found.p_corrected == mcnemar_exact(10, 30) == pytest.approx(0.0022, abs=1e-4)
    half = 196 * sqrt((0.4 - 0.04) / 100)
    assert found.interval == pytest.approx((20 - half, 20 + half), abs=1.1)


def test_the_other_way_round_is_the_mirror_image():
    a, b = rows("svamp", "ccwwu" * 20), rows("svamp", "cwcww" * 20)
    one, other = compare(a, b), compare(b, a)
    assert one.sets[0].difference == -other.sets[0].difference
    assert one.sets[0].p == other.sets[0].p
    assert one.overall.interval == pytest.approx((-other.overall.interval.high, -other.overall.interval.low), abs=1.5)


def test_several_sets_are_corrected_and_averaged():
    a = rows("gsm8k", "w" * 100) + rows("svamp", "cw" * 10) + rows("aqua", "w" * 50)
    b = rows("gsm8k", "c" * 8 + "w" * 92) + rows("svamp", "cw" * 10) + rows("aqua", "c" * 6 + "w" * 44)
    found = compare(a, b)
    assert [each.benchmark for each in found.sets] == ["aqua", "gsm8k", "svamp"]
    assert [each.difference for each in found.sets] == pytest.approx([12, 8, 0])
    assert [each.p_corrected for each in found.sets] == pytest.approx([2 * 2 / 64, 3 * 2 / 256, 1.0])
    assert found.overall.value == pytest.approx(20 / 3)
    assert found.p == pytest.approx(mcnemar_exact(0, 14), rel=0.3)


def test_rows_that_only_one_has_or_that_are_another_question_are_left_out_and_counted():
    a, b = rows("gsm8k", "cccc") + rows("aqua", "cc"), rows("gsm8k", "wwwwww")
    b[0]["question"] = "another"
    b[1]["gold"] = "2"
    found = compare(a, b)
    assert [(each.benchmark, each.rows) for each in found.sets] == [("gsm8k", 2)]
    assert found.left_out == 2 + 2 + 2 + 2  # two of aqua, two new, two that differ on each side
    assert "Left out: 8 rows" in describe(found)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (rows("gsm8k", "c"), rows("aqua", "c"), "1 of gsm8k on the one side, 1 of aqua"),
        ([], rows("aqua", "c"), "none on the one side"),
        (rows("aqua", "c") * 2, rows("aqua", "c"), "row 0 of aqua stands twice in the first"),
        (rows("aqua", "c"), [{"benchmark": "aqua"}], "a row of the second lacks row, status"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(a, b, said):
    with pytest.raises(DataError, match=said):
        compare(a, b)


def words(*sets):
    """Describe sets of (name, rows, only A right, only B right)."""
    a, b = [], []
    for name, total, only_a, only_b in sets:
        a += rows(name, "c" * only_a + "w" * (total - only_a))
        b += rows(name, "w" * only_a + "c" * only_b + "w" * (total - only_a - only_b))
    return describe(compare(a, b), a="lora", b="series")


def test_words_for_evidence_on_one_of_six_sets():
    others = [(f"set{i}", 100, 2, 3) for i in range(5)]
    text = words(("gsm8k", 1000, 40, 80), *others)
    first, second = text.split("\n")
    assert first.startswith("series is better on gsm8k by 4.0 points, 95 % CI 1.")
    assert first.endswith("; no evidence on the other five.")
    assert second.startswith(
        "No evidence of a difference on the mean of the six sets: series - lora = +1.5 points, 95 %"
    )


def test_words_for_evidence_on_both_sides():
    text = words(("gsm8k", 1000, 100, 20), ("svamp", 1000, 20, 150), ("aqua", 100, 0, 1))
    assert text.startswith("lora is better on gsm8k by 8.0 points, 95 % CI 6.")
    assert "; series is better on svamp by 13.0 points, 95 % CI 10." in text
    assert "; no evidence of a difference on aqua: series - lora = +1.0 points, 95 % CI 0.0 to " in text
    assert "\nseries is better on the mean of the three sets by 2.0 points, 95 % CI 0." in text


def test_words_for_no_evidence():
    assert words(("gsm8k", 100, 3, 5), ("aqua", 100, 1, 1)).startswith("No evidence on any of the two.\n")
    one = words(("gsm8k", 100, 3, 5))
    assert one.startswith("No evidence of a difference on gsm8k: series - lora = +2.0 points, 95 % CI -")
    assert "\n" not in one


@given(st.lists(st.tuples(st.sampled_from("cwu"), st.sampled_from("cwu")), min_size=1, max_size=40))
def test_any_rows_compare(pairs):
    a, b = (rows("x", side) for side in zip(*pairs, strict=True))
    (found,) = compare(a, b).sets
    assert found.difference == pytest.approx(100 * (found.accuracy_b - found.accuracy_a))
    assert found.interval.low <= found.difference + 1e-9 <= found.interval.high + 2e-9
    assert describe(compare(a, b)).endswith(".")
