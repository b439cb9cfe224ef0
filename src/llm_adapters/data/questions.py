"""The question of an example, bared of what benchmarks wrap around it, and in forms that can be compared.

The wrappers are those of the reference repository's files: a lead ("Please choose the correct … :"), the answer
choices and a note on the answer's format. Without them any two rows of one benchmark would resemble each other.
"""

from __future__ import annotations

import re

from llm_adapters.data.example import Example

_LEAD = re.compile(r"\s*please (?:choose|answer)\b[^:\n]{0,100}:", re.IGNORECASE)
_CHOICES = re.compile(
    r"(?:answer|solution|ending|option)\s?1\s?:|answer (?:choices|format)\s?:|(?:^|\s)\(A\).+?\(B\)|(?:^|\s)A\).+?\sB\)",
    re.IGNORECASE | re.DOTALL,
)
_NOT_WORD = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")


def stem(example: Example) -> str:
    """The question alone: instruction and input, from behind the lead up to the answer choices."""
    text = f"{example.instruction}\n{example.input}" if example.input else example.instruction
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead else text
    choices = _CHOICES.search(text)
    return text[: choices.start()] if choices else text


def words(text: str) -> list[str]:
    """The text's words in lower case: runs of letters and digits."""
    return _NOT_WORD.sub(" ", text.lower()).split()


def normalised(text: str) -> str:
    """Lower case, letters and digits only: what is equal here differs in white space and punctuation at most."""
    return _NOT_WORD.sub("", text.lower())


def masked(normal: str) -> str:
    """A normalised text with every run of digits replaced by one mark."""
    return _DIGITS.sub("#", normal)
