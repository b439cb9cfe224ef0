"""The reference repository's parallel adapter (Hu et al. 2023, section 2.1)."""

from __future__ import annotations

from typing import ClassVar

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class Parallel(BottleneckMethod):
    """``Ho ← Ho + f(Hi Wdown) Wup``, beside single linear maps; beside the sublayer: scaled_parallel."""

    insertion: ClassVar[Insertion] = "parallel"
    sites: Sites = ("ffn.up|ffn.gate_up|ffn", "ffn.down|ffn")
    bottleneck: Size = 256
    nonlinearity: Nonlinearity = "tanh"
