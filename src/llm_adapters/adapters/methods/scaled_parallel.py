"""The scaled parallel adapter (He et al. 2022, table 2)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from llm_adapters.adapters.bottleneck_method import BottleneckMethod
from llm_adapters.adapters.forms.bottleneck import Nonlinearity
from llm_adapters.adapters.method import Insertion, Sites, Size


class ScaledParallel(BottleneckMethod):
    """``Ho ← Ho + s · f(Hi Wdown) Wup``, beside the feed-forward sublayer; s is fixed at 4 or learned."""

    insertion: ClassVar[Insertion] = "parallel"
    sites: Sites = ("ffn",)
    bottleneck: Size = 256
    nonlinearity: Nonlinearity = "relu"
    scale: float = Field(4.0, gt=0)
