"""The series adapter of the paper (Hu et al. 2023, section 2.1)."""

from __future__ import annotations

from typing import ClassVar

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class Series(BottleneckMethod):
    """``Ho ← Ho + f(Ho Wdown) Wup``, after the feed-forward sublayer, before the residual is added."""

    insertion: ClassVar[Insertion] = "series"
    sites: Sites = ("ffn",)
    bottleneck: Size = 256
    nonlinearity: Nonlinearity = "tanh"
