"""Completions of commonsense questions, each read by hand, under both protocols: one file of cases a format."""

from types import ModuleType

import pytest

from evaluation.label_cases import answer, ending, option, solution, truth
from llm_adapters.evaluation.families import ANSWERS
from llm_adapters.evaluation.options import Option
from llm_adapters.evaluation.protocols import PROTOCOLS

FORMATS = [answer, ending, option, solution, truth]


@pytest.mark.parametrize(
    ("form", "completion", "standard", "paper"),
    [pytest.param(form, *case, id=f"{form.__name__}: {case[0]}") for form in FORMATS for case in form.CASES],
)
def test_a_label_is_read(form: ModuleType, completion: str, standard: str | None, paper: str | None) -> None:
    options = [Option(*option) for option in form.OPTIONS]
    labels = ANSWERS if form is answer else [option.label for option in options]
    for name, expected in (("standard", standard), ("paper", paper)):
        gold = options[-1].label
        found = PROTOCOLS[name].label(completion, gold, options, labels)
        assert found.answer == expected, name
        assert found.status == ("unparsed" if expected is None else "correct" if expected == gold else "wrong")


@pytest.mark.parametrize("form", FORMATS)
def test_the_cases_are_enough_and_distinct(form: ModuleType) -> None:
    assert len({case[0] for case in form.CASES}) == len(form.CASES) >= 40


def test_an_option_is_named_by_what_it_says_to_do() -> None:
    options = [Option("solution1", "Use a knife."), Option("solution2", "Use a spoon.")]
    found = PROTOCOLS["standard"].label("The best solution is to use a knife.", "solution1", options, ["solution1"])
    assert found == ("correct", "solution1")


def test_without_options_the_labels_of_the_benchmark_are_read() -> None:
    assert PROTOCOLS["standard"].label("Answer: answer5", "answer5", [], ANSWERS).status == "correct"
    assert PROTOCOLS["standard"].label("true", "true", [], ["true", "false"]).status == "correct"
