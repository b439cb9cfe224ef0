"""What a row of the table of word problems means: drawing its numbers, telling question and solution."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from operator import add, mul, sub
from random import Random
from string import Formatter

from llm_adapters.data.example import Example, Split
from llm_adapters.data.seeding import pick

TEST_SHARE = 0.2
OPERATORS: dict[str, Callable[[int, int], int | Fraction]] = {"+": add, "-": sub, "*": mul, "/": Fraction}


@dataclass(frozen=True)
class Formula:
    """``left sign right``, where each side is a number's name or a constant."""

    left: str
    sign: str
    right: str

    @classmethod
    def parse(cls, text: str) -> Formula:
        found = re.fullmatch(r"(\w+) ?([-+*/]) ?(\w+)", text)
        assert found, f"not a formula: {text!r}"
        return cls(*found.groups())

    def terms(self, numbers: Mapping[str, int]) -> tuple[int, int]:
        left, right = (int(term) if term.isdecimal() else numbers[term] for term in (self.left, self.right))
        return left, right

    def value(self, numbers: Mapping[str, int]) -> int | None:
        """The result, or None where it is not a whole number of at least 1."""
        result = OPERATORS[self.sign](*self.terms(numbers))
        return int(result) if result == int(result) and result >= 1 else None


@dataclass(frozen=True)
class Step:
    """One line of the solution: ``label: left sign right = result``."""

    label: str
    result: str
    formula: Formula


@dataclass(frozen=True)
class WordProblem:
    """A question with blanks, how its numbers are drawn, and the steps that solve it."""

    text: str
    numbers: Mapping[str, range | Formula]
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str, numbers: str, steps: str) -> WordProblem:
        """One row of the table, whose form ``word_problem_table`` describes."""
        rules = dict(number.split("=") for number in numbers.split())
        parts = [re.split(": | = ", step.strip(), maxsplit=2) for step in steps.split(";")]
        return cls(
            text,
            {name: _range(rule) if ".." in rule else Formula.parse(rule) for name, rule in rules.items()},
            tuple(Step(label, result, Formula.parse(formula)) for label, result, formula in parts),
        )

    def draw(self, rng: Random) -> dict[str, int] | None:
        """Values of all numbers and results, or None where the drawn numbers do not suit."""
        values: dict[str, int] = {}
        for name, rule in (*self.numbers.items(), *((step.result, step.formula) for step in self.steps)):
            value = pick(rng, rule) if isinstance(rule, range) else rule.value(values)
            if value is None:
                return None
            values[name] = value
        return values

    def shown(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The numbers that the question prints, in their order there."""
        return tuple(values[name] for _, name, _, _ in Formatter().parse(self.text) if name and name in values)

    def split(self, values: Mapping[str, int]) -> Split:
        """The side on which this question with these numbers always lies, whatever its names and objects."""
        digest = hashlib.sha256(f"{self.text} {self.shown(values)}".encode()).digest()
        return "test" if int.from_bytes(digest[:4]) < TEST_SHARE * 2**32 else "train"

    def example(self, values: Mapping[str, int], words: Mapping[str, str]) -> Example:
        """The problem told with these numbers and words."""
        lines = []
        for step in self.steps:
            left, right = step.formula.terms(values)
            label = step.label.format(**words)
            lines.append(f"{label[0].upper()}{label[1:]}: {left} {step.formula.sign} {right} = {values[step.result]}")
        answer = str(values[self.steps[-1].result])
        return Example(
            instruction=self.text.format(**words, **values),
            input="",
            output="\n".join([*lines, f"The answer is {answer}."]),
            answer=answer,
            meta={"template": self.text, "numbers": self.shown(values), "steps": len(self.steps)},
        )


def parse_table(table: str) -> tuple[WordProblem, ...]:
    """The problems of a table: a question's lines are not indented, its numbers and steps are."""
    lines = [line for line in table.splitlines() if line.strip()]
    blocks = [list(block) for _, block in groupby(lines, key=lambda line: line.startswith(" "))]
    return tuple(
        WordProblem.parse(" ".join(question), rules[0], "; ".join(rules[1:]))
        for question, rules in zip(blocks[::2], blocks[1::2], strict=True)
    )


def _range(rule: str) -> range:
    """``2..9``, or ``10..90:10`` with a stride; both ends belong to it."""
    bounds, _, stride = rule.partition(":")
    low, high = bounds.split("..")
    return range(int(low), int(high) + 1, int(stride or 1))
