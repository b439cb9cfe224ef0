import os
import re
import statistics
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.seeding import stable_random
from llm_adapters.data.word_problem_table import NAMES, WORDS
from llm_adapters.data.word_problems import all_problems, draw_words, plural, word_problems
from llm_adapters.errors import DataError

STEP = re.compile(r"^[A-Z][\w ]*: (\d+) ([-+*/]) (\d+) = (\d+)$")
SEEDS = st.integers()
PROBLEMS = pytest.mark.parametrize("problem", all_problems(), ids=lambda problem: problem.text[:40])


def compute(left, sign, right):
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]


def tokens(text):
    """About what a tokenizer makes of it: a digit is a token, and so is a space before one."""
    return re.findall(r"[0-9]|[A-Za-z']+|\n| (?=[0-9])|[^\sA-Za-z0-9]", text)


@given(SEEDS, st.sampled_from(["train", "test"]))
def test_every_solution_is_right_and_ends_in_the_answer(seed, split):
    for example in word_problems(split, 20, seed):
        *steps, last = example.output.split("\n")
        assert last == f"The answer is {example.answer}."
        for step in steps:
            left, sign, right, result = STEP.match(step).groups()
            assert compute(int(left), sign, int(right)) == int(result)
        assert result == example.answer
        assert len(steps) == example.meta["steps"]
        assert example.input == ""


@given(SEEDS, st.sampled_from(["train", "test"]))
def test_every_number_of_a_solution_comes_from_the_question_or_an_earlier_step(seed, split):
    for example in word_problems(split, 20, seed):
        known = {*re.findall(r"\d+", example.instruction), "2", "3", "7", "100"}  # half, three games, a week, percent
        for step in example.output.split("\n")[:-1]:
            left, _, right, result = STEP.match(step).groups()
            assert {left, right} <= known
            known.add(result)


@given(SEEDS, SEEDS)
def test_train_and_test_share_nothing_whatever_the_seeds(train_seed, test_seed):
    train, test = word_problems("train", 150, train_seed), word_problems("test", 150, test_seed)
    assert not {e.instruction for e in train} & {e.instruction for e in test}
    instances = [{(e.meta["template"], e.meta["numbers"]) for e in side} for side in (train, test)]
    assert not instances[0] & instances[1]


@pytest.mark.parametrize("position", range(len(all_problems())))
def test_no_template_can_tell_the_question_of_another(position):
    # Otherwise one question could lie on either side, by the template that told it.
    own = all_problems()[position]
    pattern = re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(own.text)))
    others = [other.text.replace("{", "").replace("}", "") for other in all_problems() if other is not own]
    assert not [text for text in others if pattern.fullmatch(text)]


@given(SEEDS)
def test_questions_are_unique_and_a_smaller_size_is_the_beginning(seed):
    examples = word_problems("train", 200, seed)
    assert len({example.instruction for example in examples}) == 200
    assert word_problems("train", 50, seed) == examples[:50]


def test_different_seeds_and_splits_give_different_problems():
    first = {e.instruction for e in word_problems("train", 100, 1)}
    assert len(first & {e.instruction for e in word_problems("train", 100, 2)}) < 5
    assert len(first & {e.instruction for e in word_problems("train", 100, -1)}) < 5


def test_another_process_generates_the_same():
    script = "from llm_adapters.data.word_problems import word_problems; print(word_problems('test', 30, 5))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(word_problems("test", 30, 5))


@PROBLEMS
def test_every_template_draws_sensible_numbers_on_both_sides(problem):
    rng = stable_random("table")
    drawn = [values for values in (problem.draw(rng) for _ in range(3000)) if values]
    assert min(min(problem.shown(values)) for values in drawn) >= 2, "a number of 1 would need a singular"
    assert max(max(values.values()) for values in drawn) < 20_000
    sides = {side: {problem.shown(v) for v in drawn if problem.split(v) == side} for side in ("train", "test")}
    assert len(sides["test"]) >= 10
    assert 2 * len(sides["test"]) < len(sides["train"])


@PROBLEMS
def test_every_template_reads_as_english(problem):
    rng = stable_random("english")
    values = next(values for values in (problem.draw(rng) for _ in range(3000)) if values)
    for _ in range(20):
        words = draw_words(rng)
        question = problem.example(values, words).instruction
        assert question.endswith("?")
        assert not re.search(r"[{}]|  |\b[Aa] [aeiou]", question)
        assert words["name"] != words["friend"]
        wrong = {"he": r"\b(she|her)\b", "she": r"\b(he|him|his)\b"}[words["he"]]
        assert not re.search(wrong, question, re.IGNORECASE)
        named = next(pronouns for pronouns, names in NAMES.items() if words["name"] in names.split())
        assert named.startswith(words["he"])


def test_the_table_is_varied_and_each_word_listed_once():
    assert len({problem.text for problem in all_problems()}) >= 24
    assert {len(problem.steps) for problem in all_problems()} == {1, 2, 3, 4}
    assert {step.formula.sign for problem in all_problems() for step in problem.steps} == set("+-*/")
    words = [word for listed in (*NAMES.values(), *WORDS.values()) for word in listed.split()]
    assert not [word for word, count in Counter(words).items() if count > 1]


def test_every_template_occurs_about_equally_often():
    counts = Counter(example.meta["template"] for example in word_problems("train", 3400, 0))
    assert len(counts) == len(all_problems())
    assert max(counts.values()) < 2 * min(counts.values())


def test_problems_are_short():
    examples = word_problems("train", 1000, 0)
    assert statistics.median(len(tokens(example.output)) for example in examples) <= 45
    assert max(len(tokens(example.instruction)) for example in examples) <= 60


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("box", "boxes"), ("peach", "peaches"), ("cherry", "cherries"), ("toy", "toys"), ("tray", "trays")],
)
def test_plurals(noun, expected):
    assert plural(noun) == expected


def test_a_used_up_table_is_a_data_error(monkeypatch):
    monkeypatch.setattr("llm_adapters.data.word_problems.all_problems", lambda: all_problems()[4:5])
    monkeypatch.setattr("llm_adapters.data.word_problems.draw_words", lambda rng: SAME_WORDS)  # noqa: ARG005
    with pytest.raises(DataError, match=r"only \d+ different"):
        word_problems("test", 5000, 0)


SAME_WORDS = draw_words(stable_random("same"))
