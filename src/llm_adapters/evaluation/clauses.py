"""Where a completion states its answer: the text after an anchor such as "the answer is"."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLEAN = [
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\*\*|__|`|\\[()\[\]]"), ""),
]
_ANCHOR = re.compile(
    r"\b(?:answer|choice|option|solution|ending|statement)\s*(?:(?:is|would be|should be|must be)\b|:|=)"
    r"|\\boxed\s*\{|^####",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = re.compile(r"[\s:=>{]*")
_END = re.compile(r"[.!?](?=\s|$)|\n|\}")


def clean(text: str) -> str:
    """``text`` without markdown bold and code marks and without LaTeX text commands."""
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    return text.strip()


def stated(text: str) -> Iterator[str]:
    """What stands after each anchor, up to the next one, the last first.

    Anchors: "answer", "choice", "option", "solution", "ending" or "statement", then "is", "would be", "should
    be", "must be", ":" or "="; "\\boxed{"; "####" at the start of a line.
    """
    end = len(text)
    for anchor in reversed(list(_ANCHOR.finditer(text))):
        lead = _LEAD.match(text, anchor.end(), end)
        rest = text[lead.end() if lead else anchor.end() : end]
        if rest:
            yield rest
        end = anchor.start()


def sentence(text: str) -> str:
    """``text`` up to the end of its first sentence or line, with the full stop left out."""
    end = _END.search(text)
    return text[: end.start()] if end else text
