"""The question of an example, bared of what benchmarks wrap around it, and in forms that can be compared.

The wrappers are those of the reference repository's files: a lead ("Please choose the correct … :"), the answer
choices and a note on the answer's format. Without them any two rows of one benchmark would resemble each other.
"""

from __future__ import annotations

import re
import unicodedata

from llm_adapters.data.example import Example

_LEAD = re.compile(
    r"\s*please (?:choose the correct [^:\n]{0,100}|answer the following question with true or false, question):",
    re.IGNORECASE,
)
_CHOICES = re.compile(
    r"(?:answer|solution|ending|option)\s?1\s?:"  # Answer1: … Answer2: …
    r"|answer (?:choices|format)\s?:"
    r"|(?:^|\s)\(A\)\s.+?\s\(B\)\s",  # the choices of AQuA, where nothing announces them
    re.IGNORECASE | re.DOTALL,
)
_CLITIC = re.compile(r"\s*(n?)'(?=(?:s|t|d|m|re|ve|ll)\b)")
_NOT_WORD = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_FEWEST_WORDS = 4


def stem(example: Example) -> str:
    """The question alone: instruction and input, from behind the lead up to the answer choices.

    A text that would be empty then is kept whole.
    """
    text = f"{example.instruction}\n{example.input}" if example.input else example.instruction
    lead = _LEAD.match(text)
    bare = text[lead.end() :] if lead else text
    choices = _CHOICES.search(bare)
    bare = bare[: choices.start()] if choices else bare
    return bare if bare.strip() else text


def words(text: str) -> list[str]:
    """The text's words in lower case: runs of letters and digits, where "Ann's", "Ann 's" and "anns" are one."""
    return _NOT_WORD.sub(" ", _CLITIC.sub(r"\1", _lower(text))).split()


def normalised(text: str) -> str:
    """Lower case, letters and digits only: what is equal here differs in white space and punctuation at most.

    A formula (digits and fewer than four words) keeps its signs: 5 + 3 is not 5 - 3.
    """
    text = _lower(text)
    is_formula = _DIGITS.search(text) and len(_LETTERS.findall(text)) < _FEWEST_WORDS
    return "".join(text.split()) if is_formula else _NOT_WORD.sub("", text)


def masked(text: str) -> str:
    """The normalised text with every run of digits replaced by one mark."""
    return _DIGITS.sub("#", normalised(text))


def _lower(text: str) -> str:
    """Lower case, in one of the several ways (NFKC) that Unicode has to write an accent, a width or a ligature."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
