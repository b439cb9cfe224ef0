"""P-Tuning (Liu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.forms import VirtualTokens
from llm_adapters.adapters.forms.virtual_tokens import Encoder
from llm_adapters.adapters.method import Method, Parts, Size


class PTuning(Method):
    """``[encoder(P); X]``: virtual tokens before the input, trained through an encoder that is folded away on save.

    ``encoder`` is ``mlp`` or ``lstm`` of width ``hidden`` (0: the embedding's width); ``none`` is what is left
    after folding.
    """

    starts_at_identity: ClassVar[bool] = False  # virtual tokens take part in attention from the start
    learning_rate: ClassVar[float] = 3e-3
    tokens: Size = 20
    encoder: Encoder = "mlp"
    hidden: int = Field(0, ge=0)

    def build(self, base: Base) -> VirtualTokens:
        width = base.token_width
        return VirtualTokens(self.tokens, width, encoder=self.encoder, hidden=self.hidden or width).to(base.device)

    def count(self, base: Base) -> int:
        d = base.token_width
        h = self.hidden or d
        table = self.tokens * d
        if self.encoder == "none":
            return table
        if self.encoder == "mlp":
            return table + (d + 1) * h + (h + 1) * h + (h + 1) * d
        # A direction of an LSTM layer has four gates with input, recurrent weights and two biases each.
        first, second = 2 * 4 * h * (d + h + 2), 2 * 4 * h * (2 * h + h + 2)
        return table + first + second + (2 * h + 1) * 2 * h + (2 * h + 1) * d

    def fold(self, parts: Parts) -> tuple[Method, Parts]:
        if self.encoder == "none" or not isinstance(parts, VirtualTokens):
            return self, parts
        return self.model_copy(update={"encoder": "none"}), parts.fold()
