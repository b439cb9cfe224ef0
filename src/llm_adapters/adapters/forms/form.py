"""The contract of a form: a small trainable map that an insertion adds to a site."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llm_adapters.model.frozen_linear import FrozenLinear
from llm_adapters.model.recomputed import saving


class Form(nn.Module, ABC):
    """A map from a site's hidden states to an update of the same leading shape.

    Parameters are kept in their own dtype (float32 by default) and cast to the dtype of the hidden states,
    so that a half-precision base trains with full-precision adapter weights.
    """

    @property
    def draws(self) -> bool:
        """Whether it may draw random numbers."""
        return True

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, T, d_in) → update (B, T, d_out)."""

    def add_to(
        self,
        out: Tensor,
        x: Tensor,
        *,
        fresh: bool,  # noqa: ARG002 (see LowRank)
        frozen: FrozenLinear | None = None,  # noqa: ARG002
    ) -> Tensor:
        """``out + self(x)``.

        Args:
            fresh: whether ``out`` may be overwritten.
            frozen: if known, the map that gave ``out`` of ``x``: nothing else has to be passed back through ``out``.
        """
        return out + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """``self(x)``, of which nothing is held for the backward pass that can be computed again there."""
        with saving():
            result: Tensor = self(x)
        return result

    def delta_weight(self) -> Tensor | None:
        """The (d_out, d_in) matrix that this form adds to a linear map, or None if it is not linear."""
        return None
