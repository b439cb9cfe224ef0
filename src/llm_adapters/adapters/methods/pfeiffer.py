"""The bottleneck adapter of Pfeiffer et al. (2020, MAD-X), AdapterP."""

from __future__ import annotations

from typing import ClassVar

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class Pfeiffer(BottleneckMethod):
    """``Ho ← Ho + f(norm(Ho) Wdown + b) Wup + b``, after the feed-forward only; ``norm`` adds layer norms."""

    insertion: ClassVar[Insertion] = "series"
    sites: Sites = ("ffn",)
    bottleneck: Size = 64
    nonlinearity: Nonlinearity = "relu"
    bias: bool = True
