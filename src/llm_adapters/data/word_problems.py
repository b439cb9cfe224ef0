"""Arithmetic word problems with worked solutions, generated from a table and a seed.

Train and test cannot overlap: a hash of a question's template and numbers decides its side, not the seed.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

from llm_adapters.data.example import Example, Split
from llm_adapters.data.seeding import pick, shuffled, stable_random
from llm_adapters.data.word_problem_table import NAMES, PROBLEMS, WORDS
from llm_adapters.data.word_problem_template import WordProblem, parse_table
from llm_adapters.errors import DataError

MOST_DRAWS = 1000  # of one template in a row without a new problem, until it counts as used up


def word_problems(split: Split, size: int, seed: int) -> list[Example]:
    """``size`` different problems of one split, every template equally likely until it is used up.

    The same arguments give the same problems everywhere, and a smaller size the beginning of a larger one.
    No question, and no template with the same numbers, occurs in both splits, whatever the two seeds.
    ``meta`` holds ``template``, ``numbers`` (as the question prints them) and ``steps`` (1 to 4).

    Raises:
        DataError: more problems are asked for than can be found.
    """
    rng = stable_random("word-problems", split, seed)
    left = list(all_problems())
    found: dict[str, Example] = {}
    while len(found) < size:
        if not left:
            raise DataError(f"there are only {len(found)} different word problems", mend="lower the size")
        problem = pick(rng, left)
        tries = (_draw(problem, split, rng) for _ in range(MOST_DRAWS))
        example = next((new for new in tries if new and new.instruction not in found), None)
        if example:
            found[example.instruction] = example
        else:
            left.remove(problem)
    return list(found.values())


def _draw(problem: WordProblem, split: Split, rng: Random) -> Example | None:
    """One problem of that template, or None where the drawn numbers do not suit or lie in the other split."""
    values = problem.draw(rng)
    if values is None or problem.split(values) != split:
        return None
    return problem.example(values, draw_words(rng))


@cache
def all_problems() -> tuple[WordProblem, ...]:
    """The parsed table."""
    return parse_table(PROBLEMS)


def draw_words(rng: Random) -> dict[str, str]:
    """A value for every word in braces that the table may use."""
    pronouns = pick(rng, list(NAMES))
    name = pick(rng, NAMES[pronouns].split())
    friends = [other for names in NAMES.values() for other in names.split() if other != name]
    he, him, his = pronouns.split()
    words = {
        "name": name,
        "friend": pick(rng, friends),
        "he": he,
        "He": he.capitalize(),
        "him": him,
        "his": his,
    }
    for kind, choices in WORDS.items():
        for suffix, word in zip(("", "2"), shuffled(rng, choices.split()), strict=False):
            words[f"{kind}{suffix}"] = word
            words[f"{plural(kind)}{suffix}"] = plural(word)
    return words


def plural(noun: str) -> str:
    """The plural of a regular English noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", noun) + "s"
