"""The training loss: next-token cross-entropy over the labelled positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_adapters.data.encoding import IGNORED
from llm_adapters.model.head import Head
from llm_adapters.model.memory import sent

LOGITS = 1 << 26  # bytes of logits made at a time
_CHUNK = 1 << 21  # logits handled at a time on a CPU: 8 MB in float32, which stays in a processor's cache
_FORGETS = ("MmBackward", "AddmmBackward", "LinearBackward", "BmmBackward", "IndexBackward", "_PrepackedLinear")
_VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "AliasBackward", "SqueezeBackward")


def labelled_tokens(labels: Sequence[int]) -> int:
    """How many labels of one example take part in the loss; the first position is never predicted."""
    return sum(label != IGNORED for label in labels[1:])


def summed_loss(model: nn.Module, batch: Mapping[str, Any], head: Head | None = None) -> Tensor:
    """Cross-entropy summed over the labelled tokens of a batch, padded or packed, in float32."""
    return token_losses(model, batch, head).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Any], head: Head | None = None) -> Tensor:
    """Cross-entropy (K,) of every labelled token of a batch, padded or packed, row after row, in float32.

    Logits are computed where a label needs them: with the model's ``head`` there alone, and a part of them at a time;
    without it at all columns where some row has a label, and at once.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    accepted = inspect.signature(_plain_forward(head.decoder if head else model)).parameters
    if "position_ids" not in accepted:
        inputs.pop("position_ids", None)
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORED).any(0).nonzero().flatten()
    wanted = targets[:, columns]
    kept = wanted != IGNORED
    device = inputs["input_ids"].device
    columns, wanted = sent(columns, device), sent(wanted[kept], device)
    if head is not None:
        found = head.decoder(**inputs, use_cache=False).last_hidden_state
        found = found[:, columns.to(found.device)]
    elif "logits_to_keep" in accepted:
        found = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    else:
        found = model(**inputs, use_cache=False).logits
        found = found[:, columns.to(found.device)]
    rows = found.flatten(0, 1) if bool(kept.all()) else found[kept]
    wanted = wanted.to(rows.device)
    losses: Tensor = CrossEntropy.apply(rows, wanted) if head is None else HeadLoss.apply(rows, head, wanted)
    return losses


class HeadLoss(torch.autograd.Function):
    """Cross-entropy (K,) of hidden states (K, d) under a frozen head, whose logits are made a part at a time.

    The gradient of each state is computed with its loss and held in the place of its logits, which are far more.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, targets: Tensor) -> Tensor:
        """The K losses in float32."""
        wanted = ctx.needs_input_grad[0]
        losses = states.new_empty(len(targets), dtype=torch.float32)
        gradient = torch.empty_like(states) if wanted else None
        lines = max(1, LOGITS // (head.vocabulary * states.element_size()))
        for start in range(0, len(targets), lines):
            part = slice(start, start + lines)
            with torch.set_grad_enabled(wanted):
                given = states[part].detach().requires_grad_(wanted)
                found = CrossEntropy.apply(head.layer(given), targets[part])
                losses[part] = found.detach()
                if gradient is not None:
                    gradient[part] = torch.autograd.grad(found.sum(), given)[0]
        ctx.gradient = gradient
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return _once(gradient).mul_(outer[0][:, None]), None, None


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy (K,) of (K, V) logits; its gradient takes the place of the logits.

    So one tensor of that size is held where the plain way holds the logits, their float32 copy, their log-softmax
    and the gradient. Where another backward needs the logits (soft-capping), they are copied first.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """The K losses in float32."""
        overwritten = logits.dtype == torch.float32 and _is_free(logits)
        gradient = (logits if overwritten else logits.to(torch.float32, copy=True)).detach()
        ctx.dtype = logits.dtype
        losses = gradient.new_empty(len(targets))
        lines = max(1, _CHUNK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(targets))
        for start in range(0, len(targets), lines):
            part, wanted = gradient[start : start + lines], targets[start : start + lines, None]
            part -= part.amax(1, keepdim=True)
            picked = part.gather(1, wanted)
            sums = part.exp_().sum(1, keepdim=True)
            losses[start : start + lines] = (sums.log() - picked)[:, 0]
            if ctx.needs_input_grad[0]:
                part /= sums
                part.scatter_add_(1, wanted, part.new_full(wanted.shape, -1.0))
        ctx.gradient = gradient if ctx.needs_input_grad[0] else None
        return losses

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return _once(gradient).mul_(outer[0][:, None]).to(ctx.dtype), None


def _once(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise RuntimeError("this loss has given its gradient away: a second backward pass is not possible")
    return gradient


def _is_free(logits: Tensor) -> bool:
    """Whether no backward needs ``logits``: they come straight from a matrix product, or from copying rows."""
    if not logits.requires_grad:
        return True
    node = logits.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(_FORGETS)


def _plain_forward(model: Any) -> Callable[..., Any]:
    """``forward`` of the model itself, behind a distributed or compiled wrapper."""
    inner = getattr(model, "module", getattr(model, "_orig_mod", model))
    return inner.forward
