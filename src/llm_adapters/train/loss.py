"""The training loss: next-token cross-entropy over the labelled positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_adapters.data.encoding import IGNORED

_CHUNK = 1 << 21  # logits handled at a time on a CPU: 8 MB in float32, which stays in a processor's cache
_FORGETS = ("MmBackward", "AddmmBackward", "LinearBackward", "BmmBackward", "IndexBackward", "_PrepackedLinear")
_VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "AliasBackward", "SqueezeBackward")


def labelled_tokens(labels: Sequence[int]) -> int:
    """How many labels of one example take part in the loss; the first position is never predicted."""
    return sum(label != IGNORED for label in labels[1:])


def summed_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy summed over the labelled tokens of a batch, padded or packed, in float32."""
    return token_losses(model, batch).sum()


def token_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy (K,) of every labelled token of a batch, padded or packed, row after row, in float32.

    Logits are computed only at columns where some row has a label: for short prompts before long answers
    most of the vocabulary product is saved.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    accepted = inspect.signature(_plain_forward(model)).parameters
    if "position_ids" not in accepted:
        inputs.pop("position_ids", None)
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORED).any(0).nonzero().flatten()
    if "logits_to_keep" in accepted:
        logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, columns]
    wanted = targets[:, columns]
    kept = wanted != IGNORED
    rows = logits.flatten(0, 1) if bool(kept.all()) else logits[kept]
    losses: Tensor = CrossEntropy.apply(rows, wanted[kept].to(rows.device))
    return losses


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
        if gradient is None:
            raise RuntimeError("this loss has given its gradient away: a second backward pass is not possible")
        return gradient.mul_(outer[0][:, None]).to(ctx.dtype), None


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
