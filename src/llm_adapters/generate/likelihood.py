"""Log-likelihoods of given continuations, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError
from llm_adapters.generate.inputs import accepted, context_length
from llm_adapters.model.memory import is_out_of_memory

_MOST_LOGITS = 2**28  # numbers held at once; each is 4 bytes, a few times over


class Request(NamedTuple):
    """How likely is ``continuation`` after ``context``? Both are token ids, neither empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """The natural logarithm of p(continuation | context), and whether greedy decoding writes the continuation."""

    value: float
    greedy: bool


class _Row(NamedTuple):
    """What goes through the model: the context and the continuation without its last token, which is only predicted."""

    route: RowRoute
    tokens: tuple[int, ...]


def log_likelihoods(
    model: Any,
    requests: Sequence[Request],
    *,
    pad_id: int = 0,
    batch_size: int = 64,
    routes: Sequence[RowRoute] | None = None,
) -> list[float]:
    """The natural logarithm of p(continuation | context) of every request; see :func:`likelihoods`."""
    found = likelihoods(model, requests, pad_id=pad_id, batch_size=batch_size, routes=routes)
    return [likelihood.value for likelihood in found]


@torch.inference_mode()
def likelihoods(
    model: Any,
    requests: Sequence[Request],
    *,
    pad_id: int = 0,
    batch_size: int = 64,
    routes: Sequence[RowRoute] | None = None,
    on_requests: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """The likelihood of every request, in float32.

    Requests that differ in the last token alone, such as the letters of a choice, go through the model as one row.

    Args:
        model: a causal language model, with or without adapters.
        requests: what to score.
        pad_id: any valid token id; padded positions are masked.
        batch_size: rows together, at most; fewer where their logits would be too many, or memory runs out.
        routes: the adapters of each request; None leaves those in force.
        on_requests: called with the number of requests of every batch, for a progress bar.

    Raises:
        UserError: a context or continuation is empty, or the two are longer than the model takes.
    """
    empty = [i for i, request in enumerate(requests) if not request.context or not request.continuation]
    if empty:
        raise UserError(f"request {empty[0]} has an empty context or continuation", mend="leave it out")
    room = context_length(model)
    long = [i for i, (context, more) in enumerate(requests) if room is not None and len(context) + len(more) > room + 1]
    if long:
        longest = sum(map(len, requests[long[0]]))
        raise UserError(
            f"request {long[0]} has {longest:,} tokens, more than the {room:,} that the model takes",
            mend="cut its context",
        )
    rows: dict[_Row, list[int]] = {}
    for i, (context, continuation) in enumerate(requests):
        route = None if routes is None else routes[i]
        stack = route if route is None or isinstance(route, str) else tuple(route)
        rows.setdefault(_Row(stack, (*context, *continuation[:-1])), []).append(i)
    found = [Likelihood(0.0, False)] * len(requests)
    batches = deque(_batches(model, rows, requests, batch_size))
    while batches:
        batch = batches.popleft()
        asked = [(at, i) for at, row in enumerate(batch) for i in rows[row]]
        try:
            with nullcontext() if routes is None else operations.route(model, [row.route for row in batch]):
                scored = _score(model, batch, [(at, requests[i].continuation) for at, i in asked], pad_id)
        except RuntimeError as failure:
            if len(batch) == 1 or not is_out_of_memory(failure):
                raise
            batches.extendleft([batch[len(batch) // 2 :], batch[: len(batch) // 2]])
            continue
        for (_, i), likelihood in zip(asked, scored, strict=True):
            found[i] = likelihood
        if on_requests is not None:
            on_requests(len(asked))
    return found


def _batches(
    model: Any, rows: dict[_Row, list[int]], requests: Sequence[Request], batch_size: int
) -> Iterator[list[_Row]]:
    """The rows, longest first: those of one batch are alike, and if memory does not suffice it shows at once."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    kept = "logits_to_keep" in accepted(model)
    batch: list[_Row] = []
    columns = 0
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        needed = max(len(requests[i].continuation) for i in rows[row]) if kept else len(row.tokens)
        wider = max(columns, needed)
        if batch and (len(batch) == batch_size or (len(batch) + 1) * wider * vocabulary > _MOST_LOGITS):
            yield batch
            batch, wider = [], needed
        batch.append(row)
        columns = wider
    if batch:
        yield batch


def _score(
    model: Any, rows: Sequence[_Row], asked: Sequence[tuple[int, Sequence[int]]], pad_id: int
) -> list[Likelihood]:
    """Continuations, each at the end of the row of that index. Rows are right-aligned, as are continuations."""
    device = model.get_input_embeddings().weight.device
    width, longest = max(len(row.tokens) for row in rows), max(len(continuation) for _, continuation in asked)
    ids = torch.tensor([[pad_id] * (width - len(row.tokens)) + list(row.tokens) for row in rows], device=device)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    known = accepted(model)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in known:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in known:
        inputs["logits_to_keep"] = longest
    logits = model(**inputs).logits[:, -longest:].float()  # (B, longest, V)
    greedy = logits.argmax(-1)
    at = torch.tensor([row for row, _ in asked], device=device)
    columns = torch.arange(longest, device=device)
    wanted = torch.tensor([[pad_id] * (longest - len(c)) + list(c) for _, c in asked], device=device)
    beside = columns < longest - torch.tensor([len(c) for _, c in asked], device=device)[:, None]
    scores = torch.log_softmax(logits, dim=-1)[at[:, None], columns, wanted]  # (requests, longest)
    values = torch.where(beside, 0.0, scores).sum(-1).tolist()
    written = ((greedy[at] == wanted) | beside).all(-1).tolist()
    return [Likelihood(value, agrees) for value, agrees in zip(values, written, strict=True)]
