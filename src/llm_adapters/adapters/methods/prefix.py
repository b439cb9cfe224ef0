"""Prefix-tuning (Li & Liang 2021); without the MLP it is P-Tuning v2 (Liu et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.forms import KeyValues, KVShape
from llm_adapters.adapters.method import LayerChoice, Method, Parts, Size
from llm_adapters.errors import MethodError
from llm_adapters.model.selection import select


class Prefix(Method):
    """``Ho = Attn(Hi Wq, [Pk; Hi Wk], [Pv; Hi Wv])`` with trained ``Pk, Pv`` in every adapted layer.

    ``init``: the keys and values that the base computes for random tokens (``vocabulary``) or for ``init_text``
    (``text``); ``zero`` (random keys, values zero: nothing is added, attention is only shared); or ``random``.
    ``reparametrization`` is the hidden width of an MLP that is trained in their place and folded away on save; 0
    trains them directly.
    """

    starts_at_identity: ClassVar[bool] = False  # softmax gives every prefix token some of the attention
    learning_rate: ClassVar[float] = 3e-2
    tokens: Size = 10
    layers: LayerChoice = "all"
    init: Literal["vocabulary", "text", "zero", "random"] = "vocabulary"
    init_text: str = ""
    reparametrization: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Prefix:
        if (self.init == "text") != bool(self.init_text):
            raise MethodError("init 'text' and init_text go together", mend="init: text, init_text: '…'")
        if self.init == "text" and self.reparametrization:
            raise MethodError("a reparametrized prefix starts at random, not from text", mend="reparametrization: 0")
        return self

    def _shapes(self, base: Base) -> dict[int, KVShape]:
        layers = {site.layer for site in select(base.sites, ["attn"], self.layers)}
        return {layer: shape for layer, shape in base.kv_shapes.items() if layer in layers}

    def build(self, base: Base) -> KeyValues:
        shapes = self._shapes(base)
        prefix = KeyValues(self.tokens, shapes, width=base.token_width, hidden=self.reparametrization)
        if self.reparametrization:
            return prefix.to(base.device)
        if self.init in ("text", "vocabulary"):
            from_text = self.init == "text"
            ids = base.text_ids(self.init_text, self.tokens) if from_text else base.random_ids(self.tokens)
            known = base.key_values(ids)
            prefix.fill({layer: known[layer] for layer in shapes})
        elif self.init == "zero":
            with torch.no_grad():
                for values in prefix.values.values():
                    values.zero_()
        return prefix.to(base.device)

    def count(self, base: Base) -> int:
        total = sum(shape.size for shape in self._shapes(base).values())
        hidden, width = self.reparametrization, base.token_width
        if hidden:
            return self.tokens * width + (width + 1) * hidden + (hidden + 1) * total
        return self.tokens * total

    def fold(self, parts: Parts) -> tuple[Method, Parts]:
        if not self.reparametrization or not isinstance(parts, KeyValues):
            return self, parts
        return self.model_copy(update={"reparametrization": 0}), parts.fold()
