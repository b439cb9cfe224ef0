import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data import ngrams
from llm_adapters.data.ngrams import NgramIndex

ROWS = st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=7)


def by_hand(train, tests, n):
    def grams(row):
        return {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}

    found = {}
    for number, test in enumerate(tests):
        wanted = grams(test)
        rows = [place for place, row in enumerate(train) if 2 * len(wanted & grams(row)) > len(wanted)]
        if rows and wanted:
            found[number] = tuple(rows)
    return found


@given(ROWS, ROWS, st.integers(1, 3), st.sampled_from([1, 5, 4_000_000]))
def test_the_index_finds_what_a_search_by_hand_finds(train, tests, n, most_pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_MOST_PAIRS", most_pairs)  # cut into pieces, however small, it finds the same
        assert dict(NgramIndex(train, n).overlaps(tests)) == by_hand(train, tests, n)


def test_exactly_half_is_not_more_than_half():
    index = NgramIndex([list("abcdefghij")])  # the 8-grams a–h, b–i, c–j
    assert dict(index.overlaps([list("abcdefghX")])) == {}  # 1 of 2
    assert dict(index.overlaps([list("abcdefghiX")])) == {0: (0,)}  # 2 of 3
    assert dict(index.overlaps([list("abcdefg"), list("abcdefgh")])) == {1: (0,)}  # seven words have no 8-gram


def test_half_must_lie_in_one_training_row():
    index = NgramIndex([list("abcdefgh"), list("bcdefghi")])
    assert dict(index.overlaps([list("abcdefghij")])) == {}  # each row has 1 of 3


def test_a_word_that_is_part_of_another_is_not_it():
    index = NgramIndex([["1", "2"] * 4])
    assert dict(index.overlaps([["12"] * 8, ["1", "2"] * 4, ["2", "1"] * 4])) == {1: (0,)}
