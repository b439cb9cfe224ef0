"""Reading the label of an option ("answer3", "solution1", "true") out of a completion.

Grammar, tried in this order; the first that gives a label, or offers several, ends the reading:

    label    := "answer" | "solution" | "ending" | "option" | "choice", then a number: "answer3", "Answer 3"
              | "first" … "fifth", then one of those words
              | "true" | "false", where those are the labels; there "not true" means "false", and "yes" and "no",
                before a stop or "it is", "they can" and the like, mean them too
    stated   := anchor label                  "the correct answer is answer3"; the last anchor wins
              | anchor option                 the text of an option: "the answer is the red one"
              | anchor number                 nothing but the number: "the answer is 3."
              | anchor number option          both of one option: "the answer is 3: the red one"
              | several labels, then a choice "either answer1 or answer2. I pick answer2"
    claimed  := label "is" "correct" | …      "solution2 is the better one"; the last wins
    leading  := a label, then a stop          "true, because …", "answer3\\n…"
    last     := the last label of the text that stands in no reason: "answer2, because answer1 is hot"
    option   := the completion is the text of an option, or begins with one of three words or more
    number   := the completion is nothing but a number, and no option's text is that number; or it begins with the
                number and the text of one option: "3. the red one"

A label after "not", or one that "is wrong" or "would not work", is passed over. "answer1 or answer2", "answer1,
answer2" and "true/false" offer several and state none. Labels with a colon repeat the options, unless all of them are
the same; so do "Answer1. … Answer2. …". Anchors and clauses are those of ``clauses``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_adapters.evaluation.clauses import LONGEST, NOT, clean, stated
from llm_adapters.evaluation.options import ENOUGH_WORDS, Option, starting_with

_NOUN = r"(?:answer|solution|ending|option|choice)"
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_NUMBERED = re.compile(
    rf"\b(?:{_NOUN}\s?#?\(?(?P<number>[1-9])(?!\w|\.\d)\)?|(?P<ordinal>{'|'.join(_ORDINALS)})\s{_NOUN}\b)",
    re.IGNORECASE,
)
_TRUTH = re.compile(r"\b(?P<word>true|false)\b", re.IGNORECASE)
_STOP = r"(?=\s*(?:[.,;:!)\"'”—–]|\n|$|because\b|since\b|as\b))"
_DOES = (
    r"(?=\s+(?:it|they|he|she|you|we|i|there|that|this|these|those)\s+"
    r"(?:is|are|was|were|do|does|did|can|could|will|would|has|have|had|may|might|should)(?:n['’]t|not)?\b)"
)
_YES_NO = re.compile(rf"[\s\"'“]*(?P<word>yes|no)(?:{_STOP}|{_DOES})", re.IGNORECASE)
_ALONE = re.compile(r"[\s\"'“(#]*(?P<number>[1-9])[\s\"'”).]*")
_BEFORE_OPTION = re.compile(r"[\s\"'“(#]*(?P<number>[1-9])(?![\w%])(?!\.[0-9])[\s\"'”).:,–—-]*")
_IS = r"\"?\s+(?:is|are|was|must be|would be|should be|seems|sounds|makes)\s+(?:clearly\s+|also\s+)?(?:the\s+|a\s+)?"
_DENIED = re.compile(rf"(?:{NOT}|\bnever|\bneither|\bthan|\bunlike)\s+(?:the\s+)?[\"'“]?$", re.IGNORECASE)
_NOT_TRUE = re.compile(rf"{NOT}\s+[\"'“]?$", re.IGNORECASE)
_WRONG = re.compile(
    rf"{_IS}(?:wrong|incorrect|not|never|less)\b|\s+(?:cannot|can['’]t|won['’]t|never)\b"
    r"|\s+(?:is|was|do|does|did|will|would|could|should|might|may|has)(?:\s+not|\s+never|n['’]t)\b",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"\b(?:i|we)(?:['’]d|['’]ll|\s+would|\s+will)?\s+(?:pick|choose|take|select|say|think|believe|guess|prefer|go\s+(?:with|for))\s+"
    r"(?:that\s+)?(?:it\s+is\s+|it['’]s\s+)?(?:the\s+)?[\"'“]?$",
    re.IGNORECASE,
)
_REASON = re.compile(r"(?<=[\w\"'”’),;])\s+(?:because|since)\b[^.!?\n]*", re.IGNORECASE)
_RIGHT = re.compile(
    rf"{_IS}(?:only\s+|most\s+|more\s+|final\s+)?"
    r"(?:correct|right|best|better|answer|likely|appropriate|suitable|logical|sensible|sense|plausible)\b",
    re.IGNORECASE,
)
_JOIN = re.compile(r"\"?,?\s*(?:/|&|\b(?:or|and|nor)\b)\s*(?:either\s+|perhaps\s+|maybe\s+|the\s+)?\"?")
_COMMA = re.compile(r",[ ]*")
_LAST_OF_LIST = re.compile(r"\"?\s*(?:[.,;!?]|$|\n)")
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
    for clause in stated(text):
        mentions = list(_mentions(clause.text, pattern))
        firm = [mention.value for mention in mentions if mention.firm]
        if firm or any(mention.offered for mention in mentions):
            return labels.get(firm[0] if firm else str(_chosen(clause.after, pattern)))
        named = None if truth else _numbered_option(clause.rest, options, labels) or starting_with(clause.rest, options)
        short = _short(clause.text, truth)
        if named or short:
            return named or labels.get(str(short))
    said = _unstated(text, pattern)
    if truth or said:
        return labels.get(str(said or _short(text, truth)))
    named = _numbered_option(text, options, labels) or starting_with(text, options, ENOUGH_WORDS)
    return named or labels.get(str(_short(text, truth)))


def _numbered_option(text: str, options: Sequence[Option], labels: Mapping[str, str]) -> str | None:
    """The label of the option whose number and text ``text`` begins with."""
    number = _BEFORE_OPTION.match(text)
    named = starting_with(text[number.end() : number.end() + LONGEST], options) if number else None
    return named if number and named == labels.get(number["number"]) else None


def _claims(text: str, mentions: Sequence[_Mention]) -> list[_Mention]:
    return [mention for mention in mentions if mention.firm and _RIGHT.match(text, mention.end)]


def _chosen(text: str, pattern: re.Pattern[str]) -> str | None:
    """What a text that goes on from several labels on offer settles on."""
    mentions = [mention for mention in _mentions(text, pattern) if mention.firm]
    settled = _claims(text, mentions) or [
        mention for mention in mentions if _CHOSEN.search(text, max(0, mention.start - 40), mention.start)
    ]
    return settled[-1].value if settled else None


def _unstated(text: str, pattern: re.Pattern[str]) -> str | None:
    """What a text without an anchor claims, begins with, or mentions last."""
    mentions = list(_mentions(text, pattern))
    firm = [mention for mention in mentions if mention.firm]
    claimed = _claims(text, firm)
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
        reasons = {each.start() for reason in _REASON.finditer(text) for each in pattern.finditer(text, *reason.span())}
        return ([mention for mention in free if mention.start not in reasons] or free)[-1].value
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
    for i in reversed(range(len(joined))):  # "answer1, answer2 or answer3" offers three
        a, b = found[i : i + 2]
        if _value(a) != _value(b) and _COMMA.fullmatch(text, a.end(), b.start()):
            is_last = _LAST_OF_LIST.match(text, b.end()) is not None  # unlike that of "answer1, answer2 is wrong"
            joined[i] = is_last or any(joined[i + 1 : i + 2])
    for i, match in enumerate(found):
        denied = _DENIED.search(text, max(0, match.start() - 20), match.start()) or _WRONG.match(text, match.end())
        offered = any(joined[max(0, i - 1) : i + 1]) or text.startswith("/", match.end())
        value = _value(match)
        if value == "true" and _NOT_TRUE.search(text, max(0, match.start() - 20), match.start()):
            value, denied = "false", None
        yield _Mention(value, *match.span(), denied=denied is not None, offered=offered)


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
