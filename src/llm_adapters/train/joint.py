"""One step of several adapters on one base: each micro-batch goes through the model once, for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from llm_adapters.adapters.attach import attached, route
from llm_adapters.model.packing import Documents
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import labelled_tokens, token_losses
from llm_adapters.train.memory import return_freed_memory
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.scaling import loss_scale, unscale
from llm_adapters.train.stepper import NotFinite

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """What one member brings to a joint step.

    Attributes:
        adapter: its name on the model.
        batch: the examples of its step.
        micro_batch: of them those that go through the model at once.
        shares: whether a beginning that those share is computed once.
    """

    adapter: str
    batch: Sequence[Numbered]
    micro_batch: int
    shares: bool = False


def joint_gradients(model: Any, batches: Batches, parts: Sequence[Part], rows: int) -> list[float | NotFinite]:
    """The gradients of every member's mean loss over the labelled tokens of its own batch.

    Members share no parameter, so the gradient of the sum of their losses is each one's own.

    Args:
        model: with all adapters attached.
        batches: how examples go through it.
        parts: one a member.
        rows: that go through the model at once, of all members together; one member's micro-batch may be no larger,
            and fills a pass by itself if it is as large.

    Returns:
        Each member's loss; or what is wrong with it, and then its gradients are of no use.
    """
    pieces = [
        [[part.batch[i] for i in piece] for piece in batches.pieces(_lengths(part.batch), min(part.micro_batch, rows))]
        for part in parts
    ]
    totals = [sum(labelled_tokens(row.example.labels) for row in part.batch) for part in parts]
    adapters = attached(model)
    scales = [loss_scale(adapters[part.adapter].base.dtype, total) for part, total in zip(parts, totals, strict=True)]
    means, suspects = [0.0] * len(parts), [list[int]() for _ in parts]
    for group in passes(pieces, rows):
        names = [parts[member].adapter for member, _ in group]
        examples = [[row.example for row in piece] for _, piece in group]
        tensors = batches.joint_tensors(examples, [parts[member].shares for member, _ in group])
        with _routed(model, names, list(map(len, examples)), tensors.get("documents")), batches.in_force():
            losses = token_losses(model, tensors, batches.head)
            counts = [sum(labelled_tokens(row.example.labels) for row in piece) for _, piece in group]
            shares = torch.stack([
                own.sum() / totals[member] * scales[member]
                for (member, _), own in zip(group, losses.split(counts), strict=True)
            ])  # fmt: skip
            shares.sum().backward()
        for (member, piece), value in zip(group, shares.tolist(), strict=True):
            means[member] += value / scales[member]
            if not math.isfinite(value):
                suspects[member] += [row.row for row in piece]
        if batches.device.type == "cpu":
            del losses, shares
            return_freed_memory()  # the next member's adapter has other sizes
    for part, scale in zip(parts, scales, strict=True):
        unscale(adapters[part.adapter].parameters(), scale)
    return [
        mean if math.isfinite(mean) else NotFinite(f"the loss is {mean}", of or [row.row for row in part.batch])
        for mean, of, part in zip(means, suspects, parts, strict=True)
    ]


def passes(pieces: Sequence[Sequence[list[T]]], rows: int) -> Iterator[list[tuple[int, list[T]]]]:
    """The pieces of all members as (member, piece), the first of each before the second of any.

    Every pass holds at most ``rows`` rows, and at most one piece of a member.
    """
    for turn in range(max(map(len, pieces), default=0)):
        group: list[tuple[int, list[T]]] = []
        for member, own in enumerate(pieces):
            if turn >= len(own):
                continue
            if sum(len(piece) for _, piece in group) + len(own[turn]) > rows and group:
                yield group
                group = []
            group.append((member, own[turn]))
        yield group


def _routed(model: Any, names: Sequence[str], rows: Sequence[int], documents: Documents | None) -> Any:
    """Every member's rows, or in a packed row its documents, through its own adapter."""
    if len(names) == 1:
        return route(model, names[0])
    if documents is not None:
        left = iter(documents[0])
        return route(model, names, tokens=[sum(islice(left, count)) for count in rows])
    return route(model, [name for name, count in zip(names, rows, strict=True) for _ in range(count)])


def _lengths(rows: Sequence[Numbered]) -> list[int]:
    return [len(row.example.input_ids) for row in rows]
