"""Prompt tuning (Lester et al. 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.forms import VirtualTokens
from llm_adapters.adapters.method import Method, Size
from llm_adapters.errors import MethodError


class Prompt(Method):
    """``[P; X]``: trained embeddings of virtual tokens before the input.

    ``init``: ``random`` (as wide as the base's own embeddings), ``vocabulary`` (embeddings of random tokens),
    or ``text`` (those of ``init_text``).
    """

    starts_at_identity: ClassVar[bool] = False  # virtual tokens take part in attention from the start
    learning_rate: ClassVar[float] = 3e-2
    tokens: Size = 20
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    init_text: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Prompt:
        if (self.init == "text") != bool(self.init_text):
            raise MethodError("init 'text' and init_text go together", mend="init: text, init_text: '…'")
        return self

    def build(self, base: Base) -> VirtualTokens:
        virtual = VirtualTokens(self.tokens, base.token_width).to(base.device)
        if self.init == "text":
            virtual.fill(base.embeddings(base.text_ids(self.init_text, self.tokens)))
        else:
            drawn = base.embeddings(base.random_ids(self.tokens))
            scaled = torch.randn(drawn.shape).to(drawn) * drawn.std()
            virtual.fill(drawn if self.init == "vocabulary" else scaled)
        return virtual

    def count(self, base: Base) -> int:
        return self.tokens * base.token_width
