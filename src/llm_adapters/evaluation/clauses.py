"""Where a completion states its answer: the text after an anchor such as "the answer is"."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 2000  # characters that the text of an option may take

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


def stated(text: str) -> Iterator[tuple[str, str]]:
    """What stands after each anchor, the last first: its clause, and the text that goes on from there.

    Anchors: "answer", "choice", "option", "solution", "ending" or "statement", then "is", "would be", "should
    be", "must be", ":" or "="; "\\boxed{"; "####" at the start of a line. A clause ends with its sentence, its
    line, or at the next anchor; the text goes on for ``LONGEST`` characters.
    """
    end = len(text)
    for anchor in reversed(list(_ANCHOR.finditer(text))):
        lead = _LEAD.match(text, anchor.end(), end)
        start = lead.end() if lead else anchor.end()
        stop = _END.search(text, start, end)
        if start < end:
            yield text[start : stop.start() if stop else end], text[start : start + LONGEST]
        end = anchor.start()
