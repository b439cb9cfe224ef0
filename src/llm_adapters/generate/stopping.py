"""When a completion ends: at a token, at a text, or at a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

_SPARE = 8  # tokens that may show no character: special ones, or parts of one


def ends_in(texts: Sequence[str], ids: list[int], decode: Decode) -> bool:
    """Whether one of ``texts`` stands in the end of what ``ids`` say; their last token was just added."""
    if not texts:
        return False
    longest = max(map(len, texts))
    tail = decode(ids[-longest - _SPARE :])  # a token shows a character or more, so this much suffices
    return any(text in tail for text in texts)


def cut(text: str, stop_texts: Sequence[str]) -> str:
    """``text`` up to the first of the texts that end it."""
    ends = [text.find(stop) for stop in stop_texts]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
