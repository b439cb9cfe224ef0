"""What all grammars of answers share: anchors and the clauses after them, negations, turns, and what is cleared away.

answer  := "answer" | "ans" | "ans."      then maybe "to the question"; in any case
choice  := answer | "choice" | "option" | "solution" | "ending" | "statement"
states  := "is" | "isn't" | "would be" | "should be" | "must be" | "will be" | "has to be"
         | "comes to" | ":" | "="
anchor  := answer states                  or, where options are named, choice states
         | "\\boxed{" | "####"             the latter at the start of a line
clause  := what follows an anchor, up to the end of its sentence or line, or the next anchor;
           of "\\boxed{", up to the next "}"
denied  := what stands right after "not" or "n't"
turn    := a line that begins with "Question:", "Instruction:", "User:", "Human:" or "Q:", or with those,
           "Problem:", "Input:" or "Response:" as a heading ("### Problem:", "**Problem:**"); after a blank
           line also "Problem:" and "Input:"; "<|im_start|>"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 2000  # characters that the text of an option may take

_CLEAN = [
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"(?<=[0-9])\*\*(?=[0-9])"), "^"),  # a power of Python; other double stars are markdown
    (re.compile(r"\*\*|__|`|\\[()\[\]]"), ""),
]
_TO = r"(?:\s+to\s+(?:the|this|that|your)\s+(?:question|problem))?"
_STATES = (
    r"(?:is(?=n['’]t\b)|:|="
    r"|(?:is|(?:would|should|must|will|has\s+to)\s+be|comes\s+(?:out\s+)?to(?:\s+be)?)\b)"
)
_ANSWER = r"answer|ans\b\.?"
ANSWER = re.compile(
    rf"\b(?:{_ANSWER}){_TO}\s*{_STATES}|^####(?=[ ]*-?[0-9.,]+[ ]*$)|\\boxed\s*\{{", re.IGNORECASE | re.MULTILINE
)
"""Anchors of a number: "####" must have nothing but a number after it, or it is a heading of markdown."""
FREE = re.compile(rf"\b(?:{_ANSWER}){_TO}\s*{_STATES}|\\boxed\s*\{{", re.IGNORECASE)
"""Anchors of an answer of any kind."""
CHOICE = re.compile(
    rf"\b(?:{_ANSWER}|choice|option|solution|ending|statement){_TO}\s*{_STATES}|\\boxed\s*\{{|^####",
    re.IGNORECASE | re.MULTILINE,
)
"""Anchors of a choice among options."""
NOT = r"(?:\bnot|n['’]t)"
"""What denies whatever stands right after it."""
_LEAD = re.compile(r"[\s:=>{]*")
_END = re.compile(r"[.!?](?=\s|$)(?!\s*=)|\n")  # "5! = 120" goes on
_BRACE = re.compile(r"\}")

_ASKING = ("Instruction", "Question", "User", "Human", "Q")
_TITLES = ("Problem", "Input")  # words of any reasoning, unless set apart as a title is
TURN_TEXTS = (
    *(f"\n{name}:" for name in _ASKING),
    *(f"\n\n{name}:" for name in _TITLES),
    *(f"\n### {name}:" for name in (*_ASKING, *_TITLES, "Response")),
    "<|im_start|>",
)
"""Texts at which generation stops: each begins a turn."""
_TURN = re.compile(
    rf"^[#* \t]*(?:{'|'.join(_ASKING)})\s*:|^[ \t]*[#*][#* \t]*(?:{'|'.join(_TITLES)}|Response)\s*:"
    rf"|(?<=\n\n)[ \t]*(?:{'|'.join(_TITLES)})\s*:|<\|im_start\|>",
    re.MULTILINE,
)


class Clause(NamedTuple):
    """What an anchor states: the anchor, the clause after it, and the text that goes on from where that begins."""

    anchor: str
    text: str
    rest: str

    @property
    def after(self) -> str:
        """What goes on behind the clause."""
        return self.rest[len(self.text) :]


def clean(text: str) -> str:
    """``text`` without markdown bold and code marks and without LaTeX text commands."""
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    return text.strip()


def stated(text: str, anchors: re.Pattern[str] = CHOICE, longest: int = LONGEST) -> Iterator[Clause]:
    """What stands after each anchor, the last first; ``rest`` goes on for ``longest`` characters at most."""
    end = len(text)
    for anchor in reversed(list(anchors.finditer(text))):
        lead = _LEAD.match(text, anchor.end(), end)
        start = lead.end() if lead else anchor.end()
        stop = (_BRACE if anchor[0].startswith("\\") else _END).search(text, start, end)
        if start < end:
            yield Clause(anchor[0], text[start : stop.start() if stop else end], text[start : start + longest])
        end = anchor.start()


def first_turn(completion: str) -> str:
    """``completion`` up to where the model goes on with a turn of its own making; it may begin with one."""
    for turn in _TURN.finditer(completion):
        if completion[: turn.start()].strip():
            return completion[: turn.start()]
    return completion
