"""Reading a number out of a model's answer.

Grammar, after what ``clauses`` clears away and some LaTeX (``\\frac{a}{b}`` and ``\\frac34`` are a/b, ``{,}`` is a
comma); anchors and clauses are those of ``clauses``:

    number  := [-] digits [. digits]    with commas or spaces between full groups of three or none; ".5" is 0.5
    value   := number [/ number]        a fraction, divided out; "2 1/2" is 2.5
    direct  := value                    with which a clause begins, after "about", "x =" and the like, and which no
                                        sign or "of" ties to another one: "7 apples, since 3 + 4 = 7"
    sum     := … "=" value              the last "=" with no unsolved sum behind it: "3 x 4 = 12", "12 = 3 x 4"; up to
                                        the first comma where a value begins the clause
    spelled := … "which is" value       "the sum of 3 and 4, which is 7"; also "which makes", "which equals" …
    first   := … value                  "that she has 7 left"; not after "answer:"
    answer  := direct | sum | spelled | first     in this order, of the clause after an anchor

Asides ("since …", "(as 3 + 4 = 7)") are left out once there is a value. The last anchor with a value wins; without
any, the last value of the text, unless the text breaks off in an equation ("10 - 6 ="), which states nothing.
"Answer:" before a list ("1. First … 2. Then …"), a sentence that begins with words, or a sum with more to follow is no
anchor: reasoning begins there. A value right after "not" is passed over: "not 5, it is 6". Currency before a number
and a unit, "%" or "th" after it are passed over, so "25%" is 25. A power is worked out if it is short ("10^2" is 100),
or no value.
Digits glued to a letter or raised above one are names and powers, not values: "CO2", "cm^2". A minus is a sign unless
it follows a digit, letter or bracket: "10-4" is 10 and 4; "negative 5" is -5. The comma is never the decimal mark;
exponents ("1e5") and numerals in words are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

from llm_adapters.evaluation.clauses import ANSWER, NOT, Clause, clean, stated

_PLAIN = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_PART = r"(?:\{\s?([0-9.,]+)\s?\}|([0-9]))"  # of a LaTeX fraction


def _fraction(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}/{match[3] or match[4]}"


def _power(match: re.Match[str]) -> str:
    return str(int(match[1]) ** int(match[2]))


_CLEAN: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\{,\}|\\,(?=[0-9]{3})"), ","),
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac)"), " "),
    (re.compile(rf"\\[dt]?frac\s?{_PART}\s?{_PART}"), _fraction),
    (re.compile(r"(?<![0-9.,A-Za-z])([0-9]{1,6})\s?\^\s?\{?\s?([0-9]{1,2})(?![0-9])\s?\}?"), _power),
    (re.compile(r"(?<![0-9.,])[0-9.,]*[0-9]\s?\^\s?\{?\s?[+-]?[0-9]+\}?"), "?"),
    (re.compile(r"\^\s?\{?\s?[+-]?[0-9]+\}?"), ""),
    (re.compile(r"\b(?:USD|EUR|GBP|INR|Rs\.?)\s?(?=-?\.?[0-9])"), " "),
    (re.compile(r"-\s?\\?[$€£¥₹]\s?"), "-"),
    (re.compile(r"\\?[$€£¥₹]"), " "),
    (  # "100 000", but neither the number in "2019 500" nor "2 100/300" or "3 100-gram bags"
        re.compile(
            r"(?<![0-9.,/-])(?<![0-9.,/][ \xa0\u202f])[0-9]{1,3}(?:[ \xa0\u202f][0-9]{3})+(?![\w/-]|,[0-9]| [/0-9])"
        ),
        lambda match: re.sub(r"\s", "", match[0]),
    ),
    (re.compile(r"\b(?:negative|(?<=\bis )minus)\s+(?=\.?[0-9])", re.IGNORECASE), "-"),
    (
        re.compile(
            rf"{NOT}\s+-?{_PLAIN}(?:(?: ?/ ?|\s+n?or\s+-?){_PLAIN})*(?:(?:\s*[,;])?\s*(?:but|it\s+is|it's|rather)\b)?",
            re.IGNORECASE,
        ),
        " ",
    ),
]
_VALUE = re.compile(
    r"(?:(?<![0-9A-Za-z)\]}%])(?P<sign>-))?(?<![0-9A-Za-z_])(?<![0-9]\.)"
    rf"(?:(?P<whole>[0-9]+) (?=[0-9]+ ?/ ?[0-9]))?(?P<parts>{_PLAIN}(?: ?/ ?{_PLAIN})*)"
)
_BROKEN_OFF = re.compile(r"[-+*/×÷=]\s*$")
_LEAD = re.compile(
    r"(?:[\s(\[{\"'“‘~≈:>-]|\\approx|\b(?:about|approximately|around|roughly|exactly|a\s+total\s+of|just|only|[a-z]\s*=)(?!\w))*",
    re.IGNORECASE,
)
_TIED = re.compile(  # what stands between two values that belong together
    r"(?:[-+*/×÷^(]|\\times|\\cdot|\\div)[\s(]{0,5}\Z|\A\s*(?:%\s*)?(?:x|of|times|plus|minus)\s*\Z", re.IGNORECASE
)
_ASIDE = re.compile(r"\b(?:since|because|as|where|given)\b|(?<=\s)\([^()=]*=", re.IGNORECASE)
_COMMA = re.compile(r"[,;](?=\s|$)")
_SPELLED = re.compile(r"\b(?:which|that)\s+(?:is|makes|gives|equals|comes\s+to)\b", re.IGNORECASE)
_STEP = re.compile(r"\.\s+[A-Za-z]")
_NEXT_STEP = re.compile(r"[.!?:\n]\s*\b2\.\s")
_EXACT = Context(prec=40, Emax=MAX_EMAX, Emin=MIN_EMIN)  # numbers of any length, without overflow


@dataclass(frozen=True)
class Extracted:
    """A number read from text; ``anchored`` tells that the text marked it as its answer."""

    value: Decimal
    anchored: bool


def extract_number(text: str) -> Extracted | None:
    """The number that ``text`` gives as its answer by the grammar above, or None; any string may be given."""
    text = _cleaned(text)
    for clause in stated(text, ANSWER):
        value = None if _BROKEN_OFF.search(clause.text) or _begins_a_list(clause) else _said(clause)
        if value is not None:
            return Extracted(_decimal(value), anchored=True)
    values = [] if _BROKEN_OFF.search(text) else list(_VALUE.finditer(text))
    return Extracted(_decimal(values[-1]), anchored=False) if values else None


def whole_number(text: str) -> Decimal | None:
    """The number that ``text`` is, in any notation of the grammar ("1/2", "$5", "25%"); None if it is more than one."""
    value = _VALUE.fullmatch(_cleaned(text).strip().removesuffix("%").strip())
    return None if value is None or value["parts"].count("/") > 1 else _decimal(value)


def same_number(a: Decimal, b: Decimal, tolerance: float = 1e-3) -> bool:
    """Whether two numbers differ by ``tolerance`` at most, as the reference compares them."""
    return _EXACT.subtract(a, b).copy_abs() <= Decimal(str(tolerance))


def _cleaned(text: str) -> str:
    text = clean(text)
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    return text


def _said(clause: Clause) -> re.Match[str] | None:
    """The value that a clause states: direct, a sum, spelled out, or its first."""
    first = _VALUE.search(clause.text)
    if first is None:
        return None
    lead = _LEAD.match(clause.text)
    begins = lead is not None and lead.end() >= first.start()
    aside = _ASIDE.search(clause.text, first.end()) if begins else None
    text = clause.text[: aside.start()] if aside else clause.text
    comma = _COMMA.search(text, first.end())
    part = text[: comma.start()] if begins and comma else text
    if begins and "=" not in part[first.end() :] and not _is_tied(part, first):
        return first
    solved = _solved(part) or (_solved(text) if _is_tied(part, first) else None)
    if clause.anchor.endswith(":") and (not begins or "=" in clause.after):  # reasoning, which may go on
        return None if "=" in clause.after else solved
    return solved or _spelled(text, first) or first


def _spelled(text: str, first: re.Match[str]) -> re.Match[str] | None:
    """The value right behind a "which is" that follows the first value."""
    spelled = _SPELLED.search(text, first.end())
    value = _VALUE.search(text, spelled.end()) if spelled else None
    lead = _LEAD.match(text, spelled.end()) if spelled else None
    return value if value and lead and lead.end() >= value.start() else None


def _solved(text: str) -> re.Match[str] | None:
    """The value behind the last "=" that a sum does not follow, or before it: "7 = 3 + 4"; None without a "="."""
    sides = text.split("=")
    for side in reversed(sides if len(sides) > 1 else []):
        value = _VALUE.search(side)
        if value is not None and not _is_tied(side, value):
            return value
    return None


def _is_tied(text: str, first: re.Match[str]) -> bool:
    """Whether a sign of arithmetic stands between the first value of ``text`` and a second one."""
    second = _VALUE.search(text, first.end())
    return second is not None and _TIED.search(text[first.end() : second.start()]) is not None


def _begins_a_list(clause: Clause) -> bool:
    """Whether the clause, after a colon, is the number of a first step, with a second one behind it."""
    after = clause.after if clause.anchor.endswith(":") and clause.text.strip() == "1" else ""
    return _STEP.match(after) is not None and _NEXT_STEP.search(after) is not None


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
