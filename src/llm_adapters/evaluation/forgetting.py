"""What a base forgets: its cross-entropy on plain text that was not trained on, without and with the adapter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from llm_adapters.errors import DataError
from llm_adapters.evaluation.statistics import macro_mean
from llm_adapters.generate.likelihood import Request, log_likelihoods

BUILT_IN = "builtin"
PIECE = 128
"""Tokens that the model sees at once; the first of them is only read."""


@dataclass(frozen=True)
class Forgetting:
    """A measurement, in nats a token.

    Attributes:
        text: ``builtin``, or the name of the file.
        digest: SHA-256 of the text.
        tokens: that were predicted.
        before: cross-entropy of the base.
        after: with the adapter.
        difference: after - before; positive is forgetting.
        low, high: its 95 % bootstrap interval over pieces of the text: it answers for the choice of text alone.
    """

    text: str
    digest: str
    tokens: int
    before: float
    after: float
    difference: float
    low: float
    high: float


def plain_text(source: str) -> str:
    """The text of a file, or the one that is shipped: some two pages about a ferry and an island.

    Raises:
        DataError: there is no such file, or it is empty.
    """
    if source == BUILT_IN:
        return (files("llm_adapters.data") / "plain_text.txt").read_text(encoding="utf-8")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise DataError(
            f"evaluate.forgetting: '{source}' is no text file that can be read", mend=f"'{BUILT_IN}', or a UTF-8 file"
        ) from failure
    if not text.strip():
        raise DataError(f"evaluate.forgetting: '{source}' is empty", mend=f"'{BUILT_IN}', or a file with some pages")
    return text


def measure_forgetting(model: Any, tokenizer: Any, source: str, adapter: str) -> Forgetting:
    """Read a text piece by piece, with the base and with the adapter.

    A last piece that is shorter is left out unless it is the only one, so that all weigh the same.

    Args:
        model: with the adapter attached.
        tokenizer: of the model.
        source: ``builtin`` or a file.
        adapter: its name.

    Raises:
        DataError: the text cannot be read, or is shorter than two tokens.
    """
    text = plain_text(source)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [ids[i : i + PIECE] for i in range(0, len(ids) - PIECE + 1, PIECE)] or [ids]
    if len(pieces[0]) < 2:
        raise DataError(f"evaluate.forgetting: '{source}' has {len(ids)} tokens", mend="a text of some pages")
    requests = [Request(piece[:1], piece[1:]) for piece in pieces]
    model.eval()
    values = log_likelihoods(
        model, requests * 2, pad_id=tokenizer.pad_token_id or 0, routes=[None] * len(pieces) + [adapter] * len(pieces)
    )
    predicted = len(pieces[0]) - 1
    before, after = -np.reshape(values, (2, len(pieces))) / predicted  # each (pieces,)
    change = macro_mean([after - before], lowest=None)
    return Forgetting(
        source if source == BUILT_IN else Path(source).name, hashlib.sha256(text.encode()).hexdigest(),
        predicted * len(pieces), float(before.mean()), float(after.mean()), change.value, *change.interval,
    )  # fmt: skip
