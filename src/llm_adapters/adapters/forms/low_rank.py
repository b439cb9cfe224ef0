"""The low-rank form of LoRA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.adapters.forms.form import Form


class LowRank(Form):
    """``x → scale · B A x`` with ``A`` (R, d_in) and ``B`` (d_out, R) (Hu et al. 2022, section 4.1).

    ``A`` starts Kaiming-uniform and ``B`` at zero, as in the LoRA paper and peft.
    """

    def __init__(self, d_in: int, d_out: int, rank: int, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d_in))
        self.B = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = dropout

    @property
    def draws(self) -> bool:
        return self.dropout > 0

    def _down(self, x: Tensor) -> Tensor:
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        return F.linear(x, self.A.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        # The scale is applied to the rank, which is narrower than the output.
        return F.linear(self._down(x) * self.scale, self.B.to(x.dtype))

    def add_to(self, out: Tensor, x: Tensor, *, fresh: bool) -> Tensor:
        # One fused product-and-add instead of product, scale, add: two passes fewer over (B, T, d_out).
        rows = self._down(x).flatten(0, -2)
        if rows.dtype != x.dtype or rows.dtype != out.dtype:  # autocast, which leaves products in place alone
            return out + F.linear(rows, self.B.to(rows.dtype)).view(out.shape).to(out.dtype) * self.scale
        flat = out.reshape(-1, out.shape[-1])
        B = self.B.to(x.dtype).t()
        if fresh and out.is_contiguous():
            flat = flat.addmm_(rows, B, alpha=self.scale)
        else:
            flat = torch.addmm(flat, rows, B, alpha=self.scale)
        return flat.view(out.shape)

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A)
