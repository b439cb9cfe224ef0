"""What became of a completion: correct, wrong, or unparsed; and the judge of answers of any kind."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

from llm_adapters.evaluation.answers import extract_number, same_number

Status = Literal["correct", "wrong", "unparsed"]

_STATED = re.compile(r"\banswer\s*(?:is\b|:|=)[\s:=]*([^\n]*)", re.IGNORECASE)


class Judgement(NamedTuple):
    """``answer`` is what was read from the completion, None when nothing could be."""

    status: Status
    answer: str | None


def decide(answer: str | None, *, correct: bool) -> Judgement:
    """The judgement of an answer that was read, or None, which is no wrong answer but an unparsed one."""
    if answer is None:
        return Judgement("unparsed", None)
    return Judgement("correct" if correct else "wrong", answer)


def judge(completion: str, gold: str) -> Judgement:
    """Compare with a gold answer: as a number (within 1e-3) if the gold answer is one, else as text.

    Text is read after the last "answer is" (or "answer:"), or is the whole completion if it is one line,
    and compared without case, outer punctuation and white space.
    """
    number = as_number(gold)
    if number is not None:
        found = extract_number(completion)
        if found is None:
            return Judgement("unparsed", None)
        return decide(str(found.value), correct=same_number(found.value, number))
    stated = _STATED.findall(completion)
    text = (stated[-1] if stated else completion).strip().rstrip(".!").rstrip()
    if not text or (not stated and "\n" in text):
        return Judgement("unparsed", None)
    return decide(text, correct=_plain(text) == _plain(gold))


def as_number(text: str) -> Decimal | None:
    """The number that ``text`` is, without thousands separators; None if it is none."""
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _plain(text: str) -> str:
    return text.strip(" \t.,;:!?\"'()").casefold()
