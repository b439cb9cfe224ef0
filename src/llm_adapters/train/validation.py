"""Validation while training: what decides which adapter is the best, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters.data.encoding import Encoded
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import labelled_tokens, summed_loss


@dataclass(frozen=True)
class Validation:
    """The mean loss over all labelled tokens of examples that are not trained on; smaller is better."""

    examples: Sequence[Encoded]

    @torch.no_grad()
    def measure(self, model: Any, batches: Batches, size: int) -> float:
        """Measure the model as it is, without dropout and without drawing random numbers.

        Args:
            model: the model with the adapter attached; its mode is put back.
            batches: how examples go through it.
            size: rows that go through it at once.
        """
        was_training = model.training
        model.eval()
        try:
            total = 0.0
            for piece in batches.pieces([len(example.input_ids) for example in self.examples], size):
                with batches.in_force():
                    total += float(summed_loss(model, batches.tensors([self.examples[index] for index in piece])))
            return total / sum(labelled_tokens(example.labels) for example in self.examples)
        finally:
            model.train(was_training)
