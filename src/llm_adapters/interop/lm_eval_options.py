"""The options that lm-evaluation-harness hands to a model: its batch size, and what a task asks of a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_adapters.errors import UserError
from llm_adapters.generate import Sampling

_AUTO = 64  # rows together where the batch size is "auto"
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing, as in the harness
_MAX_NEW_TOKENS = 256  # where a task does not say, as in the harness
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


class Ending(NamedTuple):
    """When a completion ends: before the first of ``until``, or after ``limit`` tokens; and how tokens are drawn."""

    until: tuple[str, ...]
    limit: int
    sampling: Sampling | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Ending:
        """From a task's ``generation_kwargs``.

        Raises:
            UserError: the task wants what this engine does not have.
        """
        until = options.get("until") or ()
        limits = [int(options[name]) for name in _LIMITS if options.get(name) is not None]
        drawn = options.get("do_sample")
        temperature = options.get("temperature")
        if drawn is None:
            drawn = float(temperature or 0) > 0
        elif temperature == 0:
            drawn = False  # what a temperature of zero means
        foreign = sorted(options.keys() - {"until", *_LIMITS, *_SAMPLING})
        if foreign:
            raise UserError(
                f"the task wants '{foreign[0]}', which this engine does not have",
                allowed=["until", *_LIMITS, *_SAMPLING],
                mend="leave the task out, or run it with another model of the harness",
            )
        texts = (until,) if isinstance(until, str) else until
        sampling = None
        if drawn:
            values = {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name)}
            sampling = Sampling(**values)
        return cls(tuple(text for text in texts if text), (limits or [_MAX_NEW_TOKENS])[0], sampling)


def read_batch_size(asked: int | str, most: int | None) -> int:
    """A number of rows from a number or "auto", which is 64, or ``most`` if given.

    Raises:
        UserError: it is neither.
    """
    text = str(asked)
    if text.partition(":")[0] == "auto":
        return most or _AUTO
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"the batch size is '{text}'", mend="give a number of 1 or more, or auto")
    return int(text)
