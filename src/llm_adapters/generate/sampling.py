"""How the next token is chosen: the likeliest, or drawn – for every prompt alike in any batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_adapters.data.seeding import stable_random
from llm_adapters.errors import UserError

_WIDE = 128


def likeliest(logits: Tensor) -> Tensor:
    """Token ids (B,) of the largest of the logits (B, V), the first of equals: argmax where the maximum is.

    PyTorch's own argmax goes over a vocabulary one number at a time on a CPU, its maximum does not.
    """
    rows, vocabulary = logits.shape
    if vocabulary % _WIDE:
        return logits.argmax(-1)
    parts = logits.view(rows, -1, _WIDE)
    part = parts.amax(-1).argmax(-1)
    return part * _WIDE + parts[torch.arange(rows, device=logits.device), part].argmax(-1)


@dataclass(frozen=True)
class Sampling:
    """Draw tokens instead of taking the likeliest.

    Every prompt has random numbers of its own, from ``seed`` and its index: what it gets does not depend on the
    prompts beside it.

    Attributes:
        temperature: logits are divided by it; positive.
        top_k: draw among that many likeliest tokens; None is all.
        top_p: draw among the likeliest tokens that together reach this probability, in (0, 1] (Holtzman et al. 2020).
        seed: of the draws.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed, fits in (
            ("temperature", self.temperature, "a positive number", self.temperature > 0),
            ("top_k", self.top_k, "1 or more, or None", self.top_k is None or self.top_k >= 1),
            ("top_p", self.top_p, "in (0, 1]", 0 < self.top_p <= 1),
        ):
            if not fits:
                raise UserError(f"{name} = {value}", mend=f"{name} is {allowed}; without sampling decoding is greedy")

    def number(self, prompt: int, place: int) -> float:
        """The uniform number in [0, 1) of a prompt's new token at ``place``, whenever it is asked for."""
        return stable_random("sampling", self.seed, prompt, place).random()

    def choose(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Token ids (B,) for logits (B, V) and one uniform number a row (B,): the inverse of the distribution."""
        scaled, ids = logits.float() / self.temperature, None
        if self.top_k is not None or self.top_p < 1:
            scaled, ids = scaled.topk(min(self.top_k or scaled.shape[1], scaled.shape[1]))
        probabilities = scaled.softmax(-1)
        reached = probabilities.cumsum(-1)
        # A token stays if those before it have not reached top_p; the first one always does.
        kept = (reached - probabilities < self.top_p).sum(-1, keepdim=True)
        total = reached.gather(-1, kept - 1)
        place = torch.searchsorted(reached, numbers[:, None].to(reached) * total, right=True)
        place = torch.minimum(place, kept - 1)
        return (place if ids is None else ids.gather(-1, place))[:, 0]
