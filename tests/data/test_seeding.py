from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.seeding import pick, shuffled, stable_random


def test_choices_are_the_same_everywhere_and_forever():
    # If one of these changes, every recorded seed of every run means something else.
    rng = stable_random("here", 7)
    assert [pick(rng, range(100)) for _ in range(5)] == [83, 93, 23, 5, 28]
    assert shuffled(rng, "abcdef") == list("dbfeca")


def test_seeds_that_the_standard_library_confuses_are_told_apart():
    assert stable_random(-1).random() != stable_random(1).random()
    assert stable_random(1, 23).random() != stable_random(12, 3).random()


@given(st.lists(st.integers()), st.integers())
def test_shuffling_keeps_every_item(items, seed):
    assert Counter(shuffled(stable_random(seed), items)) == Counter(items)


@given(st.integers())
def test_picks_cover_all_items(seed):
    rng = stable_random(seed)
    assert {pick(rng, "abc") for _ in range(200)} == set("abc")
