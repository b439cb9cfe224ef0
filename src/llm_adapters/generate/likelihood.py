"""Log-likelihoods of given continuations, in batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError


class Request(NamedTuple):
    """How likely is ``continuation`` after ``context``? Both are token ids, neither empty."""

    context: Sequence[int]
    continuation: Sequence[int]


@torch.inference_mode()
def log_likelihoods(
    model: Any,
    requests: Sequence[Request],
    *,
    pad_id: int = 0,
    batch_size: int = 64,
    routes: Sequence[RowRoute] | None = None,
) -> list[float]:
    """The natural logarithm of p(continuation | context) of every request, in float32.

    Args:
        model: a causal language model, with or without adapters.
        requests: what to score.
        pad_id: any valid token id; padded positions are masked.
        batch_size: requests scored together.
        routes: the adapters of each request; None leaves those in force.

    Raises:
        UserError: a context or continuation is empty.
    """
    empty = [i for i, request in enumerate(requests) if not request.context or not request.continuation]
    if empty:
        raise UserError(f"request {empty[0]} has an empty context or continuation", mend="leave it out")
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].context) - len(requests[i].continuation), i))
    found = [0.0] * len(requests)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        with nullcontext() if routes is None else operations.route(model, [routes[i] for i in chosen]):
            scores = _batch(model, [requests[i] for i in chosen], pad_id)
        for i, value in zip(chosen, scores.tolist(), strict=True):
            found[i] = value
    return found


def _batch(model: Any, requests: Sequence[Request], pad_id: int) -> Tensor:
    """Sums (B,) of log-probabilities. Rows are right-aligned, so that few columns hold all continuations."""
    device = model.get_input_embeddings().weight.device
    rows = [[*context, *continuation] for context, continuation in requests]
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in accepted:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    longest = max(len(request.continuation) for request in requests)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = longest + 1
    logits = model(**inputs).logits[:, -longest - 1 : -1].float()
    wanted = ids[:, -longest:]
    scores = torch.log_softmax(logits, dim=-1).gather(-1, wanted[..., None])[..., 0]
    counts = torch.tensor([len(request.continuation) for request in requests], device=device)
    counted = torch.arange(longest, device=device) >= longest - counts[:, None]
    return torch.where(counted, scores, 0.0).sum(-1)
