import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.word_problem_template import Formula, WordProblem, parse_table

TABLE = """
{name} has {a} {things} and loses {c}.
How many tens are left?
    a=10..30:10 b=2..4 c=a/b
    Left: x = a - c; tens: y = x / 10
One {thing}? {a}?
    a=5..5
    Half of the {things}: x = a * 2
"""
NUMBERS = {"a": 12, "b": 5}


@pytest.mark.parametrize(
    ("text", "value"),
    [("a + b", 17), ("a-b", 7), ("a * 2", 24), ("a / 4", 3), ("a / b", None), ("b - a", None), ("b - 5", None)],
)
def test_a_formula_gives_a_positive_whole_number_or_none(text, value):
    assert Formula.parse(text).value(NUMBERS) == value


@pytest.mark.parametrize("text", ["a", "a + b + c", "a ** b", "a = b", ""])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(AssertionError, match="not a formula"):
        Formula.parse(text)


def test_the_table_is_read_in_blocks():
    first, second = parse_table(TABLE)
    assert first.text == "{name} has {a} {things} and loses {c}. How many tens are left?"
    assert first.numbers["a"] == range(10, 31, 10)
    assert first.numbers["c"] == Formula("a", "/", "b")
    assert [step.label for step in first.steps] == ["Left", "tens"]
    assert second.steps[0].formula == Formula("a", "*", "2")


def test_numbers_that_do_not_suit_are_not_drawn():
    drawn = [parse_table(TABLE)[0].draw(random.Random(seed)) for seed in range(200)]
    shown = {(values["a"], values["b"]) for values in drawn if values}
    # 10/2 leaves 5 and 20/4 leaves 15, which are no whole tens; 10/3, 20/3, 10/4 and 30/4 are no whole numbers.
    assert shown == {(20, 2), (30, 3)}
    assert None in drawn


def test_an_example_is_told_step_by_step():
    first, second = parse_table(TABLE)
    words = {"name": "Ann", "thing": "box", "things": "boxes"}
    example = first.example({"a": 20, "b": 2, "c": 10, "x": 10, "y": 1}, words)
    assert example.instruction == "Ann has 20 boxes and loses 10. How many tens are left?"
    assert example.output == "Left: 20 - 10 = 10\nTens: 10 / 10 = 1\nThe answer is 1."
    assert example.answer == "1"
    assert example.meta == {"template": first.text, "numbers": (20, 10), "steps": 2}
    told = second.example({"a": 5, "x": 10}, words)
    assert told.output == "Half of the boxes: 5 * 2 = 10\nThe answer is 10."


def test_the_split_of_a_question_never_changes():
    # Whoever changes the hash moves questions of recorded test sets into training sets.
    problem = WordProblem.parse("{a} and {b}?", "a=2..9 b=2..9", "Sum: x = a + b")
    tests = [f"{a}{b}" for a in range(2, 10) for b in range(2, 10) if problem.split({"a": a, "b": b}) == "test"]
    assert " ".join(tests) == "22 24 34 38 39 48 63 64 65 66 69 74 76 77 85 96"


@given(st.integers(2, 99), st.integers(2, 99), st.integers(2, 99))
def test_numbers_that_the_question_does_not_show_do_not_move_it(a, b, hidden):
    problem = WordProblem.parse("{a} and {b}?", "a=2..99 b=2..99 c=2..99", "Sum: x = a + c")
    values = {"a": a, "b": b, "c": hidden}
    assert problem.shown(values) == (a, b)
    assert problem.split(values) == problem.split({**values, "c": hidden + 1})
