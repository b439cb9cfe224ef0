"""Putting encoded examples into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.data.seeding import shuffled, stable_random

WINDOW = 32  # batches sorted together: enough to save padding, few enough to stay random


def collate(batch: Sequence[Encoded], pad_id: int, side: Literal["left", "right"] = "right") -> dict[str, torch.Tensor]:
    """A padded batch.

    The mask comes from the lengths and never from the ids, so that a real end-of-sequence token stays visible
    where the tokenizer pads with it.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (from 0 at each row's first real token) and
        ``labels`` (-100 on padding), each int64 of shape B×T.
    """
    width = max(len(encoded.input_ids) for encoded in batch)

    def pad(row: Sequence[int], value: int) -> list[int]:
        filler = [value] * (width - len(row))
        return filler + list(row) if side == "left" else list(row) + filler

    columns = {
        "input_ids": [pad(encoded.input_ids, pad_id) for encoded in batch],
        "attention_mask": [pad([1] * len(encoded.input_ids), 0) for encoded in batch],
        "position_ids": [pad(range(len(encoded.input_ids)), 0) for encoded in batch],
        "labels": [pad(encoded.labels, IGNORED) for encoded in batch],
    }
    return {name: torch.tensor(rows, dtype=torch.long) for name, rows in columns.items()}


def collate_packed(
    rows: Sequence[Sequence[Encoded]], beginnings: Sequence[Sequence[int]] | None = None
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Rows of several documents, one after the other, each with positions of its own.

    Args:
        rows: the documents of every row.
        beginnings: for every document of every row, how many first tokens, without a label, it has in common with the
            last one before it that has 0 here; they are left out.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 of shape B×T, and the lengths of every row's documents;
        shorter rows end with a document without labels. The first label of a document is never predicted: it is -100.
    """
    begins = [[0] * len(row) for row in rows] if beginnings is None else beginnings
    lengths = [
        [len(encoded.input_ids) - begin for encoded, begin in zip(*pair, strict=True)]
        for pair in zip(rows, begins, strict=True)
    ]
    width = max(map(sum, lengths))
    fillers = [width - sum(row) for row in lengths]
    documents = [[*row, filler] if filler else row for row, filler in zip(lengths, fillers, strict=True)]

    def joined(parts: Callable[[Encoded], Sequence[int]], value: int) -> torch.Tensor:
        return torch.tensor(
            [
                [number for encoded, begin in zip(row, own, strict=True) for number in parts(encoded)[begin:]]
                + [value] * filler
                for row, own, filler in zip(rows, begins, fillers, strict=True)
            ],
            dtype=torch.long,
        )

    columns = {
        "input_ids": joined(lambda encoded: encoded.input_ids, 0),
        "position_ids": torch.tensor(
            [
                [place for length, begin in zip(row, [*own, 0], strict=False) for place in range(begin, begin + length)]
                for row, own in zip(documents, begins, strict=True)
            ]
        ),
        "labels": joined(lambda encoded: [IGNORED, *encoded.labels[1:]], IGNORED),
    }
    return columns, documents


def length_sorted_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every example once, in batches of similar length.

    The examples are shuffled, cut into windows of 32 batches and sorted by length within each; then the
    batches are shuffled. The same arguments always give the same batches. At most one batch is smaller.
    """
    rng = stable_random("batches", seed, epoch)
    order = shuffled(rng, range(len(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = sorted(order[start : start + WINDOW * batch_size], key=lambda index: lengths[index])
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    return shuffled(rng, batches)
