"""The options of a choice: read from the text of a question, matched in a completion, chosen by likelihood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from llm_adapters.evaluation.answers import extract_number, same_number

_WORD = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|[^\w\s.,;:!?\"'“”‘’()*\[\]]")
LETTERS = "ABCDE"
_ARTICLES = ("the", "a", "an", "that", "to")  # and what else leads up to an option: "the solution is to use a knife"
ENOUGH_WORDS = 3  # an option of fewer words, with nothing before it, may be only how a sentence begins


class Option(NamedTuple):
    """One option: what stands for it in an answer ("answer3", "C"), and what it says."""

    label: str
    text: str


def numbered(instruction: str) -> tuple[Option, ...]:
    """The options of a commonsense question of the reference's files.

    The labels stand in its last line, "Answer format: solution1/solution2"; each with a capital and a colon
    introduces a text: "Solution1: …". Labels without numbers ("true/false") are their own texts. A question of
    another form has no options: the result is empty.
    """
    body, _, written = instruction.rpartition("Answer format:")
    labels = written.strip().split("/")
    if not body or not all(labels):
        return ()
    if not labels[0][-1].isdigit():
        return tuple(Option(label, label) for label in labels)
    return tuple(map(Option, labels, _texts(body, [f"{label.capitalize()}:" for label in labels])))


def lettered(instruction: str) -> tuple[Option, ...]:
    """The options "Answer Choices: (A) … (B) …" of an AQuA question; empty if they do not stand there."""
    choices = instruction.rpartition("Answer Choices:")[2]
    return tuple(map(Option, LETTERS, _texts(choices, [f"({letter})" for letter in LETTERS])))


def _texts(body: str, marks: Sequence[str]) -> list[str]:
    """What stands after each mark, in this order, up to the next one; empty if one is missing or has no text."""
    texts = []
    for mark in marks:
        text, found, body = body.partition(mark)
        if not found:
            return []
        texts.append(text.strip())
    texts = [*texts[1:], body.strip()]  # before the first mark stands the question
    return texts if all(texts) else []


def starting_with(text: str, options: Sequence[Option], least: int = 1) -> str | None:
    """The label of the option that ``text`` begins with, case, articles and punctuation aside.

    The longest such option; it ends before the end of the text or before a word, so "5" does not begin "5/3".
    An option of fewer than ``least`` words must be the whole text. None for no option, or two of one wording.
    """
    wanted = [(_words(option.text), option.label) for option in options]
    words = _words(text, most=max((len(each) for each, _ in wanted), default=0) + 1)
    best: list[tuple[int, str]] = []
    for option, label in wanted:
        begins, rest = words[: len(option)] == option, words[len(option) :]
        if option and begins and (not rest or (rest[0].isalpha() and len(option) >= least)):
            best.append((len(option), label))
    longest = [label for length, label in best if length == max(best)[0]]
    return longest[0] if len(longest) == 1 else None


def with_number(text: str, options: Sequence[Option]) -> str | None:
    """The label of the only option that is the number (within 1e-3) that ``text`` is; units aside."""
    stated = extract_number(text)
    if stated is None or not _one_number(text):
        return None
    fits = []
    for option in options:
        value = extract_number(option.text)
        if value is not None and _one_number(option.text) and same_number(stated.value, value.value):
            fits.append(option.label)
    return fits[0] if len(fits) == 1 else None


def likeliest(options: Sequence[Option], log_likelihoods: Sequence[float], *, normalise: bool = True) -> str:
    """The label of the option with the highest log-likelihood.

    Args:
        options: what was scored, in order.
        log_likelihoods: of each option's text after the prompt, summed over its tokens, in nats.
        normalise: divide by the characters of the text, as lm-evaluation-harness's ``acc_norm`` does, so that
            a long option is not unlikely for its length alone; False is its ``acc``.
    """
    lengths = [len(option.text) if normalise else 1 for option in options]
    scores = [value / length for value, length in zip(log_likelihoods, lengths, strict=True)]
    return options[scores.index(max(scores))].label


def _one_number(text: str) -> bool:
    """Whether the first and the last number of ``text`` are the same one, and no letter is mixed into it."""
    first, last = extract_number(f"answer is {text}"), extract_number(text)
    return first is not None and last is not None and first.value == last.value


def _words(text: str, most: int | None = None) -> list[str]:
    """The first words, numbers and signs of ``text`` in small letters, after its articles."""
    found = (match[0].casefold() for match in _WORD.finditer(text))
    words = list(found if most is None else islice(found, most + 2))
    while len(words) > 1 and words[0] in _ARTICLES:
        del words[0]
    return words[:most]
