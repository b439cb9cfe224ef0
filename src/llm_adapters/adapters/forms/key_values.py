"""The prefix form: trained keys and values for every adapted layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class KeyValue(NamedTuple):
    """Keys (P, H, d_key) and values (P, H, d_value) of one layer; H counts key–value heads."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class KVShape:
    """Shape of what one layer puts into the key–value cache; fewer heads than queries under grouped attention."""

    heads: int
    key_width: int
    value_width: int

    @property
    def size(self) -> int:
        """Numbers a virtual token has in this layer."""
        return self.heads * (self.key_width + self.value_width)


class KeyValues(nn.Module):
    """``Pk, Pv`` of every layer, either trained directly or through an MLP (Li & Liang 2021, section 4.3).

    With ``hidden`` > 0 one table E (P, D) and the MLP ``W2 tanh(W1 e + b1) + b2`` give all layers' keys and
    values; :meth:`fold` turns them into the direct form.
    """

    def __init__(self, tokens: int, shapes: Mapping[int, KVShape], *, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.tokens = tokens
        total = sum(shape.size for shape in shapes.values())
        self.table: nn.Parameter | None = None
        self.mlp: nn.Sequential | None = None
        if hidden:
            self.table = nn.Parameter(torch.randn(tokens, width))
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, total))
        self.keys, self.values = nn.ParameterDict(), nn.ParameterDict()
        for layer, shape in {} if hidden else self.shapes.items():
            self.keys[str(layer)] = nn.Parameter(torch.randn(tokens, shape.heads, shape.key_width))
            self.values[str(layer)] = nn.Parameter(torch.randn(tokens, shape.heads, shape.value_width))

    def forward(self) -> dict[int, KeyValue]:
        if self.mlp is None or self.table is None:
            return {layer: KeyValue(self.keys[str(layer)], self.values[str(layer)]) for layer in self.shapes}
        flat = self.mlp(self.table)  # (P, sum over layers of keys and values)
        found, start = {}, 0
        for layer, shape in self.shapes.items():
            key_size = shape.heads * shape.key_width
            keys = flat[:, start : start + key_size].view(-1, shape.heads, shape.key_width)
            values = flat[:, start + key_size : start + shape.size].view(-1, shape.heads, shape.value_width)
            found[layer] = KeyValue(keys, values)
            start += shape.size
        return found

    @torch.no_grad()
    def fill(self, key_values: Mapping[int, KeyValue]) -> None:
        """Copy given keys and values into the direct form."""
        for layer, (keys, values) in key_values.items():
            self.keys[str(layer)].copy_(keys)
            self.values[str(layer)].copy_(values)

    @torch.no_grad()
    def fold(self) -> KeyValues:
        """The same prefix in the direct form, without the MLP."""
        folded = KeyValues(self.tokens, self.shapes, width=0)
        folded.fill(self())
        return folded
