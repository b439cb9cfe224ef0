"""The training loss: next-token cross-entropy over the labelled positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.data.encoding import IGNORED


def labelled_tokens(labels: Tensor) -> int:
    """Number of labels (B, T) that take part in the loss; the first position is never predicted."""
    return int((labels[:, 1:] != IGNORED).sum())


def summed_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy summed over the labelled tokens of a padded batch, in float32.

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
    return F.cross_entropy(logits[kept].float(), wanted[kept], reduction="sum")


def _plain_forward(model: Any) -> Callable[..., Any]:
    """``forward`` of the model itself, behind a distributed or compiled wrapper."""
    inner = getattr(model, "module", getattr(model, "_orig_mod", model))
    return inner.forward
