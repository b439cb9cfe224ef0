"""Validation while training: what decides which adapter is the best, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_adapters.data.collate import collate
from llm_adapters.data.encoding import Encoded
from llm_adapters.train.loss import labelled_tokens, summed_loss


@dataclass(frozen=True)
class Validation:
    """The mean loss over all labelled tokens of examples that are not trained on; smaller is better.

    Another criterion, such as the accuracy on a benchmark, is another class with this ``measure``.
    """

    examples: Sequence[Encoded]
    pad_id: int

    @torch.no_grad()
    def measure(self, model: Any, device: torch.device, size: int) -> float:
        """Measure the model as it is, without dropout and without drawing random numbers.

        Args:
            model: the model with the adapter attached; its mode is put back.
            device: where it runs.
            size: rows that go through it at once.
        """
        was_training = model.training
        model.eval()
        try:
            ordered = sorted(self.examples, key=lambda example: len(example.input_ids))
            total, labels = 0.0, 0
            for start in range(0, len(ordered), size):
                piece = collate(ordered[start : start + size], self.pad_id)
                labels += labelled_tokens(piece["labels"])
                total += float(summed_loss(model, {key: tensor.to(device) for key, tensor in piece.items()}))
            return total / labels
        finally:
            model.train(was_training)
