"""The bottleneck form of series and parallel adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.adapters.forms.form import Form

Nonlinearity = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "identity"]
Init = Literal["zero", "reference"]
Norm = Literal["none", "before", "after", "both"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "identity": lambda x: x,
}
assert set(_FUNCTIONS) == set(get_args(Nonlinearity))


class Bottleneck(Form):
    """``x → scale · norm(f(norm(x) Wdown) Wup)`` (Houlsby et al. 2019; Hu et al. 2023, section 2.1).

    ``down`` is (F, d_in), ``up`` (d_out, F), with biases if asked for. ``init`` ``zero`` starts ``up`` at
    zero (identity); ``reference`` draws both matrices from N(0, 0.02²) as the reference repository does.
    A learned scale is one scalar that starts at ``scale``.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bottleneck: int,
        *,
        nonlinearity: Nonlinearity,
        init: Init = "zero",
        scale: float = 1.0,
        learned_scale: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(bottleneck, d_in))
        self.up = nn.Parameter(torch.zeros(d_out, bottleneck))
        nn.init.normal_(self.down, std=0.02)
        if init == "reference":
            nn.init.normal_(self.up, std=0.02)
        self.down_bias = nn.Parameter(torch.zeros(bottleneck)) if bias else None
        self.up_bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.norm_before = nn.LayerNorm(d_in) if norm in ("before", "both") else None
        self.norm_after = nn.LayerNorm(d_out) if norm in ("after", "both") else None
        self.scale: nn.Parameter | float = nn.Parameter(torch.tensor(scale)) if learned_scale else scale
        self.nonlinearity = nonlinearity
        self.dropout = dropout

    @property
    def draws(self) -> bool:
        return self.dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_before is not None:
            x = _normalise(x, self.norm_before)
        h = _FUNCTIONS[self.nonlinearity](F.linear(x, self.down.to(x.dtype), _cast(self.down_bias, x)))
        if self.training and self.dropout:
            h = F.dropout(h, self.dropout)
        # The scale is applied to the bottleneck, which is narrower than the output, unless something follows it.
        plain = self.up_bias is None and self.norm_after is None
        scale = self.scale.to(x.dtype) if isinstance(self.scale, Tensor) else self.scale
        unscaled = isinstance(scale, float) and scale == 1.0
        if plain and not unscaled:
            h = h * scale
        y = F.linear(h, self.up.to(x.dtype), _cast(self.up_bias, x))
        if self.norm_after is not None:
            y = _normalise(y, self.norm_after)
        return y if plain or unscaled else y * scale

    def delta_weight(self) -> Tensor | None:
        if self.nonlinearity != "identity" or self.down_bias is not None:
            return None
        if self.norm_before is not None or self.norm_after is not None:
            return None
        return self.scale * (self.up @ self.down)


def _cast(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, _cast(norm.weight, x), _cast(norm.bias, x), norm.eps)
