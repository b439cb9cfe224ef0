"""Reading the letter of a multiple choice (AQuA) out of a completion.

Grammar, tried in this order; the first that gives a letter, or gives two, ends the reading:

    letter    := "(C)" | "[C]" | "C)"      marked; small letters only right after an anchor or alone
               | "C"                       bare: a capital, alone; "A" only where it cannot be the article
    stated    := anchor letter             "the answer is (C)", "Answer: C", "\\boxed{C}"; the last anchor wins
               | anchor … marked letter    "the answer is 40 km (C)"
               | anchor option             the text of an option, or its number: "the answer is 40"
    claimed   := letter "is" ["the"] "correct" | "right" | "best" | "answer"
               | "option" | "choice" letter
               | "answer" | "ans" ["-"] letter stop          "ANSWER B", "answer - B"
               | "hence" | "thus" | "therefore" | "so" letter stop
    alone     := a first or last line that is nothing but a letter
    line      := a line that begins with one ("C) 40 km", "C. 40 km"), if all such lines have the same
    closing   := a last line that ends in a marked letter
    option    := the completion is the text of an option, or begins with one of three words or more, or is its number

A letter after "not" is passed over ("not B but C"), and one that "is wrong" is not claimed. "(A) or (B)" states no
answer. Anchors and clauses are those of ``clauses``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llm_adapters.evaluation.clauses import NOT, clean, stated
from llm_adapters.evaluation.options import ENOUGH_WORDS, Option, starting_with, with_number

_MARKED = r"(?:[(\[]\s?(?P<m>[A-E])\s?[)\]]|(?<![\w'(])(?P<h>[A-E])\))"
_SMALL = r"[(\[]?(?P<s>[a-e])[)\]]"  # read only where nothing but an answer can stand: algebra has "(a + b)" too
_AFTER_A = r"\s*(?:$|[.,;:!)\]}\"'’/&—–]|-\s|\n|(?:because|since|as|which|with|or|and|is)\b)"
_BARE = rf"(?<![\w'’])(?:(?P<b>[B-E])(?![\w'’])|(?P<a>A)(?={_AFTER_A})|(?P<l>[a-e])(?=\s*[.,!]?\s*$))"
_FILL = r"(?:(?:most|likely|probably|clearly|therefore|definitely|the|letter|option|choice|answer)\b[\s:]*)*"
_FIRST = re.compile(rf"[\s\"'“‘$-]*{_FILL}[\"'“‘]?(?:{_MARKED}|{_SMALL}|{_BARE})")
_ANY_MARKED = re.compile(_MARKED)
_OTHER = re.compile(
    r"[)\]]?\s*(?:or|and|,|/|&)\s*(?:(?:either|option|choice)\s+)?[(\[]?[A-E](?![\w'’])[)\]]?(?!\s+is\b)"
)
_NOT = re.compile(rf"(?:{NOT}|\b(?:neither|never))\s+(?:option\s+|choice\s+)?$", re.IGNORECASE)
_NOT_FIRST = re.compile(
    rf"\s*{NOT}\s+(?i:option\s+|choice\s+)?[(\[]?[A-Ea-e][)\]]?(?![\w'’])[\s,;]*(?i:(?:but|it\s+is|it's|rather)\s+)?"
)
_CLAIMED = re.compile(
    rf"(?:{_MARKED}|(?<![\w'’])(?P<b>[A-E]))\s+(?:is|must be|seems|matches)\s+(?:the\s+|our\s+|my\s+)?"
    r"(?:only\s+|most\s+|final\s+)?(?:correct|right|best|answer|true)\b"
    r"|\b(?i:option|choice)\s+(?:[(\[]?(?P<o>[A-E])[)\]]?)(?![\w'’])(?!\s+(?:is|was|are|cannot|can't|does|gives)\b)(?!:)"
    r"|\b(?i:answer|ans\b\.?)(?:\s*[-–—])?\s*[(\[]?(?P<n>[A-E])[)\]]?(?=\s*(?:[.,;!](?!\w)|\n|$)|\s+(?:because|since)\b)"
    r"|\b(?i:hence|thus|therefore|so)\b[\s,:]*[(\[]?(?P<t>[A-E])[)\]]?(?=\s*(?:[.!](?!\w)|\n|$))"
)
_LINE = re.compile(
    rf"^[ \t>•*-]*(?:(?i:option|choice)\s+)?(?:{_MARKED}|(?P<b>[A-E])(?:[.]\s|\s*[.,:]?\s*$)|(?P<c>[B-E]):)"
)
_ALONE = re.compile(r"\s*[(\[\"']?(?P<b>[A-Ea-e])[)\]\"'.]*\s*")
_CLOSING = re.compile(rf"{_MARKED}[\s.!]*$")


def read_letter(completion: str, options: Sequence[Option] = ()) -> str | None:
    """The letter A–E that ``completion`` gives as its answer by the grammar above, or None; any string may be given."""
    text = clean(completion)
    for _, clause, rest in stated(text):
        letters = _stated_letters(clause)
        if letters:
            return _only(letters)
        named = starting_with(rest, options) or with_number(clause, options)
        if named is not None:
            return named
    claims = [_letter(m) for m in _CLAIMED.finditer(text) if not _NOT.search(text, max(0, m.start() - 12), m.start())]
    if claims:
        return claims[-1]
    last = text.rpartition("\n")[2]
    alone = [match for match in map(_ALONE.fullmatch, (text.partition("\n")[0], last)) if match]
    letters = {_letter(match) for match in alone} or _line_letters(text)
    if letters:
        return _only(letters)
    if _CLOSING.search(last):
        return _only({_letter(match) for match in _ANY_MARKED.finditer(last)})
    short = text if len(text.split()) <= ENOUGH_WORDS else ""
    return starting_with(text, options, ENOUGH_WORDS) or with_number(short, options)


def _stated_letters(clause: str) -> set[str]:
    """The letters that an anchored clause offers: none, one, or two that it cannot choose between."""
    denied = _NOT_FIRST.match(clause)
    first = _FIRST.match(clause, denied.end() if denied else 0)
    if first is not None:
        other = _OTHER.match(clause, first.end())
        return {"two", "letters"} if other else {_letter(first)}
    return {_letter(m) for m in _ANY_MARKED.finditer(clause) if not _NOT.search(clause[: m.start()])}


def _line_letters(text: str) -> set[str]:
    """The letters of all lines that begin with one; a list of the options has them all."""
    letters: set[str] = set()
    for line in text.split("\n"):
        lead = _LINE.match(line)
        if lead:
            letters |= {_letter(lead), *map(_letter, _ANY_MARKED.finditer(line))}
    return letters


def _letter(match: re.Match[str]) -> str:
    return next(value for value in match.groupdict().values() if value).upper()


def _only(letters: Iterable[str]) -> str | None:
    """The letter, if it is one."""
    distinct = set(letters)
    return distinct.pop() if len(distinct) == 1 else None
