"""Reading the label of an option ("answer3", "solution1", "true") out of a completion.

Grammar, tried in this order; the first that gives a label, or offers several, ends the reading:

    label    := "answer" | "solution" | "ending" | "option" | "choice", then a number: "answer3", "Answer 3"
              | "first" … "fifth", then one of those words
              | "true" | "false", where those are the labels; there "yes" and "no", before a stop, mean them too
    stated   := anchor label                  "the correct answer is answer3"; the last anchor wins
              | anchor option                 the text of an option: "the answer is the red one"
              | anchor number                 nothing but the number: "the answer is 3."
    claimed  := label "is" "correct" | …      "solution2 is the better one"; the last wins
    leading  := a label, then a stop          "true, because …", "answer3\\n…"
    last     := the last label of the text
    option   := the completion is the text of an option, or begins with one of three words or more
    number   := the completion is nothing but a number, and no option's text is that number

A label after "not", or one that "is wrong", is passed over. "answer1 or answer2" and "true/false" offer several
and state none. Labels with a colon repeat the options, unless all of them are the same; so do "Answer1. … Answer2. …".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_adapters.evaluation.clauses import clean, stated
from llm_adapters.evaluation.options import ENOUGH_WORDS, Option, starting_with

_NOUN = r"(?:answer|solution|ending|option|choice)"
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_NUMBERED = re.compile(
    rf"\b(?:{_NOUN}\s?#?\(?(?P<number>[1-9])(?!\w|\.\d)\)?|(?P<ordinal>{'|'.join(_ORDINALS)})\s{_NOUN}\b)",
    re.IGNORECASE,
)
_TRUTH = re.compile(r"\b(?P<word>true|false)\b", re.IGNORECASE)
_STOP = r"(?=\s*(?:[.,;:!)\"'”—–]|\n|$|because\b|since\b|as\b))"
_YES_NO = re.compile(rf"[\s\"'“]*(?P<word>yes|no){_STOP}", re.IGNORECASE)
_ALONE = re.compile(r"[\s\"'“(#]*(?P<number>[1-9])[\s\"'”).]*")
_IS = r"\"?\s+(?:is|are|was|must be|would be|should be|seems|sounds|makes)\s+(?:clearly\s+|also\s+)?(?:the\s+|a\s+)?"
_DENIED = re.compile(r"(?:\bnot|\bnever|\bneither|n't|\bthan|\bunlike)\s+(?:the\s+)?[\"'“]?$", re.IGNORECASE)
_WRONG = re.compile(
    rf"{_IS}(?:wrong|incorrect|not|never|less)\b|\s+(?:cannot|can't|isn't|doesn't|does not)\b", re.IGNORECASE
)
_RIGHT = re.compile(
    rf"{_IS}(?:only\s+|most\s+|more\s+|final\s+)?"
    r"(?:correct|right|best|better|answer|likely|appropriate|suitable|logical|sensible|sense|plausible)\b",
    re.IGNORECASE,
)
_JOIN = re.compile(r"\"?,?\s*(?:/|&|\b(?:or|and|nor)\b)\s*(?:either\s+|perhaps\s+|maybe\s+|the\s+)?\"?")
_COMMA = re.compile(r",\s*")
_LEADING = re.compile(r"[\s\"'“(]*(?:the\s+)?")
_STOPPED = re.compile(_STOP, re.IGNORECASE)


@dataclass(frozen=True)
class _Mention:
    """A label in a text: its number or word, where it ends, and whether it is denied or one of several on offer."""

    value: str
    start: int
    end: int
    denied: bool
    offered: bool

    @property
    def firm(self) -> bool:
        return not (self.denied or self.offered)


def read_label(completion: str, options: Sequence[Option]) -> str | None:
    """The label of the option that ``completion`` gives by the grammar above, or None; any string may be given."""
    text = clean(completion)
    truth = any(option.label == "true" for option in options)
    pattern = _TRUTH if truth else _NUMBERED
    labels = {option.label if truth else option.label[-1]: option.label for option in options}
    for _, clause, rest in stated(text):
        mentions = list(_mentions(clause, pattern))
        firm = [mention.value for mention in mentions if mention.firm]
        if firm or any(mention.offered for mention in mentions):
            return labels.get(firm[0]) if firm else None
        named = None if truth else starting_with(rest, options)
        short = _short(clause, truth)
        if named or short:
            return named or labels.get(str(short))
    said = _unstated(text, pattern)
    named = None if truth or said else starting_with(text, options, ENOUGH_WORDS)
    return named or labels.get(str(said or _short(text, truth)))


def _unstated(text: str, pattern: re.Pattern[str]) -> str | None:
    """What a text without an anchor claims, begins with, or mentions last."""
    mentions = list(_mentions(text, pattern))
    firm = [mention for mention in mentions if mention.firm]
    claimed = [mention for mention in firm if _RIGHT.match(text, mention.end)]
    if claimed:
        return claimed[-1].value
    listed = _listed(text, mentions)
    free = [mention for mention in firm if mention not in listed and not text.startswith(":", mention.end)]
    lead = _LEADING.match(text)
    if free and lead and free[0].start == lead.end() and _STOPPED.match(text, free[0].end):
        return free[0].value
    if pattern is _TRUTH and _YES_NO.match(text):
        return None
    if free:
        return free[-1].value
    return mentions[0].value if len({mention.value for mention in mentions}) == 1 and firm else None


def _listed(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    """Labels that repeat the options: with a capital and a full stop, one number after the other."""
    heads = [each for each in mentions if text[each.start].isupper() and text.startswith(". ", each.end)]
    values = {each.value for each in heads}
    return [each for each in heads if values & {chr(ord(each.value[0]) - 1), chr(ord(each.value[0]) + 1)}]


def _mentions(text: str, pattern: re.Pattern[str]) -> Iterator[_Mention]:
    """Every label of ``text`` in order."""
    found = list(pattern.finditer(text))
    joined = [_JOIN.fullmatch(text, a.end(), b.start()) is not None for a, b in pairwise(found)]
    for i in reversed(range(len(joined) - 1)):  # "answer1, answer2 or answer3" offers three
        comma = _COMMA.fullmatch(text, found[i].end(), found[i + 1].start())
        joined[i] = joined[i] or (joined[i + 1] and comma is not None)
    for i, match in enumerate(found):
        denied = _DENIED.search(text, max(0, match.start() - 20), match.start()) or _WRONG.match(text, match.end())
        offered = any(joined[max(0, i - 1) : i + 1]) or text.startswith("/", match.end())
        yield _Mention(_value(match), *match.span(), denied=denied is not None, offered=offered)


def _value(match: re.Match[str]) -> str:
    parts = match.groupdict()
    if parts.get("ordinal"):
        return str(_ORDINALS.index(parts["ordinal"].lower()) + 1)
    return (parts.get("number") or parts["word"]).lower()


def _short(text: str, truth: bool) -> str | None:
    """What a text means that is the bare number of an option, or begins with yes or no where that is asked."""
    if truth:
        said = _YES_NO.match(text)
        return {"yes": "true", "no": "false"}[said["word"].lower()] if said else None
    alone = _ALONE.fullmatch(text)
    return alone["number"] if alone else None
