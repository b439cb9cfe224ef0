"""When a completion ends: at a token, at a text, or at a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_SPARE = 8  # tokens that may show no character: special ones, or parts of one


class StopTexts:
    """Texts that end a completion; a special token may be one of them, but no text is found inside its name.

    One with which a completion begins, white space aside, is passed over: what ends nothing states nothing.
    """

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
            return bool(self._decoded(ids[:-1]).strip())
        end = self._decoded(ids[-self.tail :]) if self.texts else ""
        if not any(text in end for text in self.texts):
            return False
        return _first_end(end, self.texts) >= 0 or _first_end(self._decoded(ids), self.texts) >= 0

    def end(self, ids: list[int]) -> int | None:
        """How many of ``ids`` were written when the first of the texts was complete; None if none is."""
        return next((n for n in range(1, len(ids) + 1) if self.reached(ids[:n])), None)

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def all_of(ends: Sequence[StopTexts]) -> Callable[[list[int]], bool]:
    """Whether all of several ends have been reached, be it at different tokens of one completion."""
    left = list(ends)

    def reached(ids: list[int]) -> bool:
        left[:] = [end for end in left if not end.reached(ids)]
        return not left

    return reached


def cut(text: str, stop_texts: Sequence[str]) -> str:
    """``text`` up to the first of the texts that end it; as in ``StopTexts``, none ends it where it begins."""
    end = _first_end(text, stop_texts)
    return text if end < 0 else text[:end]


def _first_end(text: str, stop_texts: Sequence[str]) -> int:
    """Where the first of ``stop_texts`` stands in ``text`` behind something that is not blank; -1 for nowhere."""
    begin = len(text) - len(text.lstrip()) + 1
    return min((end for stop in stop_texts if (end := text.find(stop, begin)) >= 0), default=-1)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's and the generation config's end of sequence."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
