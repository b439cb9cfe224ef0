"""Completions of lettered choices, each read by hand, under both protocols."""

import pytest

from llm_adapters.evaluation.options import Option
from llm_adapters.evaluation.protocols import PROTOCOLS

OPTIONS = list(map(Option, "ABCDE", ("20 km", "30 km", "40 km", "5 : 3", "None of these")))
CASES = [  # completion, standard, paper
    ("The answer is (C).", "C", "C"),
    ("The answer is C.", "C", "C"),
    ("the answer is (c)", "C", None),
    ("the answer is c", "C", None),
    ("The correct answer is C because 8 * 5 = 40.", "C", "C"),
    ("Answer: C", "C", "A"),
    ("Answer: (C) 40 km", "C", "A"),
    ("ANSWER IS C", "C", "A"),
    ("C", "C", "C"),
    ("c", "C", None),
    ("C.", "C", "C"),
    ("(C)", "C", "C"),
    ("[C]", "C", "C"),
    ("C)", "C", "C"),
    ("**C**", "C", "C"),
    ("**C) 40 km**", "C", "C"),
    ("C) 40 km", "C", "C"),
    ("C. 40 km", "C", "C"),
    ("C: 40 km", "C", "C"),
    ("(C) 40 km", "C", "C"),
    ("Option C", "C", "C"),
    ("The correct option is C.", "C", "C"),
    ("So option (C) it is.", "C", "C"),
    ("C is the correct answer.", "C", "C"),
    ("A is the correct answer.", "A", "A"),
    ("(B) is correct, the others are not.", "B", "B"),
    ("The answer is A.", "A", "A"),
    ("The answer is A, since 4 * 5 = 20.", "A", "A"),
    ("The answer is a number.", None, None),
    ("A train covers 40 km.", None, "A"),
    ("Both trains start at once. Distance is 8 * 5 = 40. The answer is (C).", "C", "B"),
    ("Rationale: 5 * 6 = 30.\nThe answer is (B).", "B", "B"),
    ("Day 1: 10 km. Each day more. The answer is (D).", "D", "D"),
    ("The answer is \\boxed{C}.", "C", "C"),
    ("$\\boxed{\\text{C}}$", "C", "C"),
    ("\\boxed{40}", "C", None),
    ("#### C", "C", "C"),
    ("The answer is 40 km.", "C", None),
    ("The answer is 40.", "C", None),
    ("The answer is 40 kilometres (C).", "C", "C"),
    ("The answer is 41 km.", None, None),
    ("The answer is 5 : 3.", "D", None),
    ("The answer is 5:3", "D", None),
    ("The answer is none of these.", "E", None),
    ("40 km", "C", None),
    ("None of these", "E", None),
    ("The answer is not (A) but (C).", "C", "A"),
    ("The answer is (A) or (B).", None, "A"),
    ("The answer is A and B.", None, "A"),
    ("The answer is either A or C.", None, "A"),
    ("(A) is wrong. (B) is wrong. (C) is right.", "C", "A"),
    ("(A) 20 km (B) 30 km (C) 40 km", None, "A"),
    ("(A) 20 km\n(B) 30 km\n(C) 40 km\n\nThe answer is B.", "B", "A"),
    ("A) 20 km\nB) 30 km\nC) 40 km", None, "A"),
    ("C\n\nExplanation: 8 * 5 = 40", "C", "C"),
    ("8 * 5 = 40\n\nC", "C", "C"),
    ("8 * 5 = 40, therefore (C)", "C", "C"),
    ("The answer is B. Hmm, no. The answer is C.", "C", "B"),
    ("The answer is (C).\n\nQuestion: Another one?\nAnswer: (D)", "C", "C"),
    ("A: The distance is 8 * 5 = 40 km. The answer is (C).", "C", "A"),
    ("A: The distance is 40 km.", None, "A"),
    ("(A) is right. On reflection, (C) is right.", "C", "A"),
    ("The answer would be C", "C", "C"),
    ("So the correct choice should be D.", "D", "D"),
    ("I choose nothing", None, None),
    ("", None, None),
    ("The answer is (a + b)(a - b).", None, None),
    ("The sum is (a + b), so b) is not needed", None, None),
    ("F", None, None),
    ("Ans: B", "B", "A"),
    ("Ans. (B)", "B", "A"),
    ("ANSWER B", "B", "A"),
    ("answer - B", "B", "B"),
    ("answer – (B)", "B", "B"),
    ("5 * 6 = 30\nHence B.", "B", "B"),
    ("Therefore, B", "B", "B"),
    ("So A. All the others are too far.", "A", "A"),
    ("Hence B is too far.", None, "B"),
    ("So A train is faster", None, "A"),
    ("You can answer A question", None, "A"),
    ("The answer is not B but C", "C", "B"),
    ("The answer is not B, it is C.", "C", "B"),
    ("The answer isn't B but C.", "C", "B"),
    ("The answer is not B.", None, "B"),
    ("The answer is not B or C.", None, "B"),
    ("The answer is F.", None, None),
]


@pytest.mark.parametrize(("completion", "standard", "paper"), CASES)
def test_a_letter_is_read(completion: str, standard: str | None, paper: str | None) -> None:
    for name, expected in (("standard", standard), ("paper", paper)):
        found = PROTOCOLS[name].letter(completion, "C", OPTIONS)
        assert found.answer == expected, name
        assert found.status == ("unparsed" if expected is None else "correct" if expected == "C" else "wrong")


def test_the_cases_are_enough_and_distinct() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


def test_an_option_that_stands_twice_cannot_be_named_by_its_text() -> None:
    twice = [Option("A", "9 km"), Option("B", "8 km"), Option("C", "9 km")]
    for text, letter in (("The answer is 9 km.", None), ("The answer is 8 km.", "B"), ("The answer is (C).", "C")):
        assert PROTOCOLS["standard"].letter(text, "C", twice).answer == letter


def test_without_options_only_letters_are_read() -> None:
    assert PROTOCOLS["standard"].letter("The answer is (C).", "C", []).status == "correct"
    assert PROTOCOLS["standard"].letter("The answer is 40 km.", "C", []).status == "unparsed"
