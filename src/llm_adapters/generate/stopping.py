"""When a completion ends: at a token, at a text, or at a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_SPARE = 8  # tokens that may show no character: special ones, or parts of one


class StopTexts:
    """Texts that end a completion; a special token may be one of them, but no text is found inside its name."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) if texts else {}
        self.ids = {special[text] for text in texts if text in special}
        self.texts = [text for text in texts if text not in special]
        # A token shows a byte or more, so the end of a text that long suffices.
        self.tail = max((len(text.encode()) for text in self.texts), default=0) + _SPARE
        self.tokenizer = tokenizer

    def reached(self, ids: list[int]) -> bool:
        """Whether the last of ``ids``, which was just added, completes one of the texts."""
        if ids[-1] in self.ids:
            return True
        if not self.texts:
            return False
        end = self.tokenizer.decode(ids[-self.tail :], skip_special_tokens=True)
        return any(text in end for text in self.texts)

    def end(self, ids: list[int]) -> int | None:
        """How many of ``ids`` were written when the first of the texts was complete; None if none is."""
        return next((n for n in range(1, len(ids) + 1) if self.reached(ids[:n])), None)


def all_of(ends: Sequence[StopTexts]) -> Callable[[list[int]], bool]:
    """Whether all of several ends have been reached, be it at different tokens of one completion."""
    left = list(ends)

    def reached(ids: list[int]) -> bool:
        left[:] = [end for end in left if not end.reached(ids)]
        return not left

    return reached


def cut(text: str, stop_texts: Sequence[str]) -> str:
    """``text`` up to the first of the texts that end it."""
    ends = [text.find(stop) for stop in stop_texts]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's and the generation config's end of sequence."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
