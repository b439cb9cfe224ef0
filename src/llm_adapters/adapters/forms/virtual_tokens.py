"""The prompt form: trained input embeddings of virtual tokens, direct or through an encoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Encoder = Literal["none", "mlp", "lstm"]


class VirtualTokens(nn.Module):
    """Embeddings (P, D) put before the input (Lester et al. 2021), or an encoder of them (Liu et al. 2021).

    ``mlp`` is three linear layers with ReLU between; ``lstm`` a two-layer bidirectional LSTM followed by two
    linear layers, as in P-Tuning. :meth:`fold` turns an encoder into the direct table.
    """

    def __init__(self, tokens: int, width: int, *, encoder: Encoder = "none", hidden: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(tokens, width))
        self.lstm: nn.LSTM | None = None
        self.mlp: nn.Sequential | None = None
        if encoder == "mlp":
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
            )
        elif encoder == "lstm":
            self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self) -> Tensor:
        x: Tensor = self.table
        if self.lstm is not None:
            x = self.lstm(x[None])[0][0]
        return x if self.mlp is None else self.mlp(x)

    @torch.no_grad()
    def fill(self, embeddings: Tensor) -> None:
        """Copy (P, D) embeddings into the table."""
        self.table.copy_(embeddings)

    @torch.no_grad()
    def fold(self) -> VirtualTokens:
        """The same virtual tokens as a direct table."""
        folded = VirtualTokens(*self.table.shape)
        folded.fill(self())
        return folded
