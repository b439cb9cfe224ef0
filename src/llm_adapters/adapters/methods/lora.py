"""LoRA (Hu et al. 2022), the reparametrization family of the paper."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from llm_adapters.adapters.forms import LowRank
from llm_adapters.adapters.method import Dropout, Insertion, SiteMethod, Sites, Size
from llm_adapters.model.sites import Site


class Lora(SiteMethod):
    """``Ho = Hi W0 + (α / r) Hi A B``; with ``rslora`` the factor is α / √r (Kalajdzievski 2023).

    Beside linear maps; can be merged into them.
    """

    insertion: ClassVar[Insertion] = "parallel"
    sites: Sites = ("linears",)
    rank: Size = 8
    alpha: float = Field(16.0, gt=0)
    dropout: Dropout = 0.0
    rslora: bool = False

    def form(self, site: Site) -> LowRank:
        scale = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        return LowRank(site.in_features, site.out_features, self.rank, scale=scale, dropout=self.dropout)

    def size(self, site: Site) -> int:
        return self.rank * (site.in_features + site.out_features)
