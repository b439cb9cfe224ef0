"""The reference repository's reading of "Series" on input projections."""

from __future__ import annotations

from typing import ClassVar

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class SeriesInput(BottleneckMethod):
    """``Hi ← Hi + f(Hi Wdown) Wup``, before a linear map; the reference's math recipe has it before up and gate."""

    insertion: ClassVar[Insertion] = "series-in"
    sites: Sites = ("ffn.up|ffn.gate_up|ffn", "ffn.gate|ffn.up|ffn.gate_up|ffn")
    bottleneck: Size = 256
    nonlinearity: Nonlinearity = "tanh"
