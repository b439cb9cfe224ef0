"""The bottleneck adapter of Houlsby et al. (2019), AdapterH."""

from __future__ import annotations

from typing import ClassVar

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class Houlsby(BottleneckMethod):
    """``Ho ← Ho + f(Ho Wdown + b) Wup + b``, after attention and after the feed-forward sublayer."""

    insertion: ClassVar[Insertion] = "series"
    sites: Sites = ("attn", "ffn")
    bottleneck: Size = 64
    nonlinearity: Nonlinearity = "gelu"
    bias: bool = True
