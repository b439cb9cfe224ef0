"""Reading a number out of a model's answer.

Grammar, after markdown stars and LaTeX are cleared away (``\\frac{a}{b}`` is a/b, ``{,}`` is a comma):

    number := [-] digits [. digits]    with commas between full groups of three or none; ".5" is 0.5
    value  := number [/ number]        a fraction, divided out; "2 1/2" is 2.5
    anchor := "answer is" | "answer:" | "answer =" | "\\boxed{"    in any case
            | "####"                   at the start of a line with nothing but a number after it
    answer := the value after an anchor, in the same sentence; of a sum "3 + 4 = 7", the value after "="

The last anchor with a value wins; without any, the last value of the text, unless the text breaks off in an
equation ("10 - 6 ="), which states nothing. Currency before a number and a
unit, "%" or "th" after it are passed over, so "25%" is 25. Digits glued to a letter or raised are names and
powers, not values: "CO2", "cm^2". A minus is a sign unless it follows a digit, letter or bracket: "10-4" is
10 and 4. The comma is never the decimal mark; exponents ("1e5") and numerals in words are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

_CLEAN = [
    (re.compile(r"\*\*|__|\\[()\[\]]"), " "),  # markdown bold, LaTeX math brackets
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\{,\}|\\,(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\s?\{\s?([0-9.,]+)\s?\}\s?\{\s?([0-9.,]+)\s?\}"), r"\1/\2"),
    (re.compile(r"\^\s?\{?\s?[+-]?[0-9]+\}?"), ""),
    (re.compile(r"\b(?:USD|EUR|GBP|INR|Rs\.?)\s?(?=-?\.?[0-9])"), " "),
    (re.compile(r"-\s?\\?[$€£¥₹]\s?"), "-"),
    (re.compile(r"\\?[$€£¥₹]"), " "),
]
_PLAIN = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_VALUE = re.compile(
    r"(?:(?<![0-9A-Za-z)\]}%])(?P<sign>-))?(?<![0-9A-Za-z_])(?<![0-9]\.)"
    rf"(?:(?P<whole>[0-9]+) (?=[0-9]+ ?/ ?[0-9]))?(?P<parts>{_PLAIN}(?: ?/ ?{_PLAIN})*)"
)
_ANCHOR = re.compile(r"\banswer\s*(?:is\b|:|=)|^####(?=[ ]*-?[0-9.,]+[ ]*$)|\\boxed\s*\{", re.IGNORECASE | re.MULTILINE)
_SENTENCE = re.compile(r"[\s:=>]*(.*?)(?:[.!?](?:\s|$)|\n|$)")
_BRACES = re.compile(r"([^}]*)")
_BROKEN_OFF = re.compile(r"[-+*/×÷=]\s*$")
_SUM = re.compile(r"[^(),;]*(?:[-+*/×÷]|\\times|\\cdot|\\div)[^(),;]*")  # what stands between a sum's numbers
_EXACT = Context(prec=40, Emax=MAX_EMAX, Emin=MIN_EMIN)  # numbers of any length, without overflow


@dataclass(frozen=True)
class Extracted:
    """A number read from text; ``anchored`` tells that the text marked it as its answer."""

    value: Decimal
    anchored: bool


def extract_number(text: str) -> Extracted | None:
    """The number that ``text`` gives as its answer by the grammar above, or None; any string may be given."""
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    end = len(text)
    for anchor in reversed(list(_ANCHOR.finditer(text))):
        stated = _stated(text, anchor, end)
        if stated is not None:
            return Extracted(_decimal(stated), anchored=True)
        end = anchor.start()
    values = [] if _BROKEN_OFF.search(text) else list(_VALUE.finditer(text))
    return Extracted(_decimal(values[-1]), anchored=False) if values else None


def same_number(a: Decimal, b: Decimal, tolerance: float = 1e-3) -> bool:
    """Whether two numbers differ by ``tolerance`` at most, as the reference compares them."""
    return _EXACT.subtract(a, b).copy_abs() <= Decimal(str(tolerance))


def _stated(text: str, anchor: re.Match[str], end: int) -> re.Match[str] | None:
    """The value that follows ``anchor`` before ``end``, or None."""
    clause = (_BRACES if anchor[0].startswith("\\") else _SENTENCE).match(text, anchor.end(), end)
    first = _VALUE.search(clause[1]) if clause else None
    if clause is None or first is None or _BROKEN_OFF.search(clause[1]):
        return None
    left, _, right = clause[1][first.end() :].rpartition("=")
    is_sum = _SUM.fullmatch(_VALUE.sub("", left)) is not None
    return (_VALUE.search(right) if is_sum else None) or first


def _decimal(value: re.Match[str]) -> Decimal:
    """The number that a match of ``_VALUE`` writes."""
    parts = [Decimal(part.replace(",", "").strip()) for part in value["parts"].split("/")]
    if len(parts) == 2 and parts[1] != 0:
        number = _EXACT.divide(*parts)
        if value["whole"] and parts[0] < parts[1]:
            number = _EXACT.add(Decimal(value["whole"]), number)
    else:  # a date, or a division by zero, is no fraction
        number = parts[-1]
    return number.copy_negate() if value["sign"] else number
