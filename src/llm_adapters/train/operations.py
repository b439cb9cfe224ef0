"""The operations of a whole training, from a few micro-batches that are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import count
from llm_adapters.train.workload import Extent

_LENGTH = 64  # of the examples that are counted


@dataclass(frozen=True)
class Operations:
    """Operations of a micro-batch: c₀ + c₁·tokens + c₂·squares + c₃·logits. Matrix products take exactly that.

    Attributes:
        training, forward: the four coefficients of a training step, and of a forward pass.
    """

    training: tuple[float, ...]
    forward: tuple[float, ...]

    @classmethod
    def of(cls, model: nn.Module, batches: Batches) -> Operations:
        """Count four small micro-batches of a model on the meta device, and solve for the coefficients."""
        rows, training, forward = [], [], []
        for tokens, labels in ((_LENGTH, 1), (_LENGTH // 2, 1), (_LENGTH // 4, 1), (_LENGTH, _LENGTH // 2)):
            example = Encoded([0] * tokens, [IGNORED] * (tokens - labels) + [0] * labels, truncated=False)
            rows.append([1, tokens, tokens**2, labels])
            training.append(count(model, batches, [example]).operations)
            forward.append(count(model, batches, [example], backward=False).operations)
        solved = np.linalg.solve(np.array(rows, float), np.array([training, forward], float).T).T
        return cls(tuple(map(float, solved[0])), tuple(map(float, solved[1])))

    def of_layers(self, extents: Sequence[Extent], *, backward: bool = True) -> float:
        """Operations of the decoder over all micro-batches, logits left out."""
        c0, c1, c2, _ = self.training if backward else self.forward
        return sum(c0 + c1 * extent.tokens + c2 * extent.squares for extent in extents)

    def of_logits(self, extents: Sequence[Extent], *, backward: bool = True) -> float:
        """Operations of the logits over all micro-batches."""
        return (self.training if backward else self.forward)[3] * sum(extent.logits for extent in extents)
