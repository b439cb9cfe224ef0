"""What the bottleneck methods share: size, nonlinearity, scale, dropout, bias, norms, initialisation."""

from __future__ import annotations

from pydantic import Field

from llm_adapters.adapters.forms.bottleneck import Bottleneck, Init, Nonlinearity, Norm
from llm_adapters.adapters.method import Dropout, SiteMethod, Size
from llm_adapters.model.sites import Site


class BottleneckMethod(SiteMethod):
    """A bottleneck ``f(x Wdown) Wup`` at every chosen site."""

    bottleneck: Size = 64
    nonlinearity: Nonlinearity = "relu"
    dropout: Dropout = 0.0
    scale: float = Field(1.0, gt=0)
    learned_scale: bool = False
    bias: bool = False
    norm: Norm = "none"
    init: Init = "zero"

    def _widths(self, site: Site) -> tuple[int, int]:
        """What the form reads and writes at ``site``, by where it is inserted."""
        d_in = site.out_features if self.insertion == "series" else site.in_features
        d_out = site.in_features if self.insertion == "series-in" else site.out_features
        return d_in, d_out

    def form(self, site: Site) -> Bottleneck:
        return Bottleneck(
            *self._widths(site),
            self.bottleneck,
            nonlinearity=self.nonlinearity,
            init=self.init,
            scale=self.scale,
            learned_scale=self.learned_scale,
            dropout=self.dropout,
            bias=self.bias,
            norm=self.norm,
        )

    def size(self, site: Site) -> int:
        d_in, d_out = self._widths(site)
        weights = self.bottleneck * (d_in + d_out)
        biases = self.bottleneck + d_out if self.bias else 0
        norms = {"none": 0, "before": 2 * d_in, "after": 2 * d_out, "both": 2 * (d_in + d_out)}[self.norm]
        return weights + biases + norms + int(self.learned_scale)
