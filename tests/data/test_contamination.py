import os
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.contamination import Hit, clean_rows, contamination
from llm_adapters.data.example import Example
from llm_adapters.data.registry import BENCHMARKS, load_benchmark
from llm_adapters.data.word_problems import word_problems

real = pytest.mark.skipif(
    not os.environ.get("LLM_ADAPTERS_DATA"), reason="needs the benchmark files: set LLM_ADAPTERS_DATA"
)
MATH = BENCHMARKS[:7]


def question(text):
    return Example(text, "", "the same output everywhere", "7")


TRAIN = [
    question("A baker sells 12 rolls and 7 cakes on one fine Monday. How many does he sell?"),
    question("What is the capital of the smallest country in the north?\n\nAnswer1: one Answer2: two"),
    question("a baker sells 12 rolls and 7 cakes, on one fine Monday: how many does he sell"),
]
TEST = [
    question("A painter paints 3 walls. How many are left?"),
    question("A baker sells 12 rolls and 7 cakes on one fine monday . How many does he sell ?"),
    question("A baker sells 15 rolls and 8 cakes on one fine Monday. How many does he sell?"),
    question("It is late. A baker sells 12 rolls and 7 cakes on one fine Monday. How many are left?"),
    question("What is the capital of the smallest country in the north?\n\nAnswer1: red Answer2: blue"),
]


def test_each_kind_is_found_with_all_its_training_rows():
    found = contamination(TRAIN, {"mine": TEST}).sets["mine"]
    assert found.hits == (
        Hit(1, "exact", (0, 2)),
        Hit(1, "numbers-masked", (0, 2)),
        Hit(1, "8-gram", (0, 2)),
        Hit(2, "numbers-masked", (0, 2)),
        Hit(3, "8-gram", (0, 2)),
        Hit(4, "exact", (1,)),
        Hit(4, "numbers-masked", (1,)),
        Hit(4, "8-gram", (1,)),
    )
    assert found.test_rows("exact") == {1, 4}
    assert found.train_rows("exact") == {0, 1, 2}
    assert found.test_rows("exact", "8-gram") == {1, 3, 4}
    assert found.share == 4 / 5
    assert found.clean() == clean_rows(TRAIN, TEST) == {0}


def test_nothing_in_common_and_empty_sets():
    report = contamination(TRAIN, {"one": TEST[:1], "none": []})
    assert {name: (found.rows, found.hits) for name, found in report.sets.items()} == {"one": (1, ()), "none": (0, ())}
    assert clean_rows([], TEST) == {0, 1, 2, 3, 4}
    assert clean_rows([question("")], [question(""), question("?!")]) == {0, 1}


@given(st.lists(st.integers(0, 59), min_size=1, max_size=12), st.lists(st.integers(0, 59), max_size=12))
def test_a_row_that_is_in_the_training_set_is_never_clean(asked, trained):
    problems = word_problems("train", 60, seed=5)
    clean = clean_rows([problems[row] for row in trained], [problems[row] for row in asked])
    assert all(asked[row] not in trained for row in clean)


def test_the_projects_own_training_and_test_problems_share_no_question():
    found = contamination(word_problems("train", 400, 0), {"test": word_problems("test", 200, 0)}).sets["test"]
    assert found.test_rows("exact") == set()


@real
def test_the_published_leak_of_the_mawps_training_file():
    report = contamination(load_benchmark("mawps", "train"), {name: load_benchmark(name) for name in MATH})
    exact = {name: len(found.test_rows("exact")) for name, found in report.sets.items()}
    near = {name: len(found.test_rows("exact", "8-gram")) for name, found in report.sets.items()}
    rows = {name: len(found.train_rows("exact")) for name, found in report.sets.items()}
    none = {"gsm8k": 0, "aqua": 0, "svamp": 0}
    assert exact == {**none, "addsub": 327, "multiarith": 490, "singleeq": 436, "mawps": 28}
    assert near == {**none, "addsub": 344, "multiarith": 515, "singleeq": 451, "mawps": 64}
    assert rows == {**none, "addsub": 412, "multiarith": 484, "singleeq": 543, "mawps": 27}
    assert len({row for found in report.sets.values() for row in found.train_rows("exact")}) == 1235


@real
@pytest.mark.parametrize(
    ("train", "test", "exact_rows", "exact", "near"),
    [
        ("boolq/train", "boolq", 6, 6, 31),
        ("piqa/train_full", "piqa", 595, 197, 198),
        ("hellaswag/train", "hellaswag", 0, 0, 1),
        ("arc_easy/train", "arc_easy", 8, 7, 18),
        ("arc_easy/train", "arc_challenge", 2, 2, 4),
        ("arc_challenge/train", "arc_challenge", 6, 7, 10),
        ("arc_challenge/train", "arc_easy", 0, 0, 5),
        ("openbookqa/train", "openbookqa", 23, 23, 25),
        ("openbookqa/train", "arc_easy", 1, 1, 2),
    ],
)
def test_questions_that_the_commonsense_sets_share(train, test, exact_rows, exact, near):
    found = contamination(load_benchmark(train), {test: load_benchmark(test)}).sets[test]
    assert (len(found.train_rows("exact")), len(found.test_rows("exact"))) == (exact_rows, exact)
    assert len(found.test_rows("exact", "8-gram")) == near


@real
@pytest.mark.parametrize("train", ["math", "commonsense"])
def test_the_clean_mixtures_hold_no_test_question_and_all_sets_are_looked_up_in_time(train):
    examples, tests = load_benchmark(train), {name: load_benchmark(name) for name in BENCHMARKS}
    started = time.perf_counter()
    report = contamination(examples, tests)
    assert time.perf_counter() - started < 20
    assert [name for name, found in report.sets.items() if found.test_rows("exact")] == []
    dirty = {name: len(found.test_rows()) for name, found in report.sets.items() if found.hits}
    assert (
        dirty
        == {
            "math": {"gsm8k": 1, "singleeq": 13, "mawps": 11},
            "commonsense": {"boolq": 9, "hellaswag": 1, "arc_easy": 16, "arc_challenge": 5, "openbookqa": 1},
        }[train]
    )


@real
def test_a_leaked_row_is_found_behind_any_wrapper():
    tests = load_benchmark("arc_easy")[:200]
    bare = [replace(row, instruction=row.instruction.split(": ", 1)[1].split("\n\n")[0]) for row in tests]
    assert clean_rows(bare, tests) == set()
