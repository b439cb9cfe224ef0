"""What became of a completion: correct, wrong, or unparsed; and the judge of answers of any kind."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

from llm_adapters.evaluation.answers import extract_number, same_number, whole_number
from llm_adapters.evaluation.clauses import FREE, clean, stated

Status = Literal["correct", "wrong", "unparsed"]

_GOES_ON = re.compile(  # "Paris, the capital", "Paris (in France)", "Paris. It is …"; not "Paris, Rome" or "Paris. No"
    r"(?:[.;:!]\s|,\s+(?=(?:the|an?|which|who|where|when|in|on|at|because|since|as|so|for)\b)|\s+[(–—-]|\s+(?:because|since)\b)"
    r"(?!\s*(?:no|or|and|but|not|nor|wait|actually)\b)"
)


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
    """Compare with a gold answer: as a number (within 1e-3) if the gold answer is one ("7", "1/2", "$5"), else as text.

    Text is the rest of the line after the last anchor (see ``clauses``), or the whole completion if it is one line.
    It is compared without case, outer punctuation and white space, and may go on behind the gold answer with a
    sentence or an aside: "Paris, the capital".
    """
    number = as_number(gold)
    if number is None:
        number = whole_number(gold)
    if number is not None:
        found = extract_number(completion)
        if found is None:
            return Judgement("unparsed", None)
        return decide(str(found.value), correct=same_number(found.value, number))
    written = clean(completion)
    said = next(stated(written, FREE, longest=len(written)), None)
    boxed = said is not None and said.anchor.startswith("\\")
    text = written if said is None else said.text if boxed else said.rest.partition("\n")[0]
    text = text.strip().rstrip(".!").rstrip()
    if not text or "\n" in text:
        return Judgement("unparsed", None)
    return decide(text, correct=_is_given(_plain(gold), _plain(text)))


def as_number(text: str) -> Decimal | None:
    """The number that ``text`` is, without thousands separators; None if it is none."""
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _is_given(gold: str, text: str) -> bool:
    """Whether ``text`` is ``gold``, or that and an explanation."""
    return text == gold or (bool(gold) and text.startswith(gold) and _GOES_ON.match(text, len(gold)) is not None)


def _plain(text: str) -> str:
    return " ".join(clean(text).strip(" \t.,;:!?\"'()").casefold().split())
