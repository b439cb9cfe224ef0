"""Whether a completion gives the gold answer: correct, wrong, or unparsed."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

from llm_adapters.evaluation.answers import extract_number, same_number

Status = Literal["correct", "wrong", "unparsed"]

_STATED = re.compile(r"answer\s*(?:is|:)\s*(.+?)\s*(?:[.!]?\s*$|\n)", re.IGNORECASE | re.MULTILINE)


class Judgement(NamedTuple):
    """``answer`` is what was read from the completion, None when nothing could be."""

    status: Status
    answer: str | None


def judge(completion: str, gold: str) -> Judgement:
    """Compare with a gold answer: as a number (within 1e-3) if the gold answer is one, else as text.

    Text is read after the last "answer is" (or "answer:"), or is the whole completion if it is one line,
    and compared without case, outer punctuation and white space.
    """
    number = _number(gold)
    if number is not None:
        found = extract_number(completion)
        if found is None:
            return Judgement("unparsed", None)
        return Judgement("correct" if same_number(found.value, number) else "wrong", str(found.value))
    stated = _STATED.findall(completion)
    text = stated[-1] if stated else completion.strip()
    if not text or (not stated and "\n" in text):
        return Judgement("unparsed", None)
    return Judgement("correct" if _plain(text) == _plain(gold) else "wrong", text)


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _plain(text: str) -> str:
    return text.strip(" \t.,;:!?\"'()").casefold()
