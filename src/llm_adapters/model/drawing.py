"""Which modules draw random numbers while they train."""

from __future__ import annotations

from typing import Any

from torch import nn


def draws(module: nn.Module) -> bool:
    """Whether a module itself has a rate of dropout or jitter above zero; without one it is taken to draw nothing."""
    rates: dict[str, Any] = {name: value for name, value in vars(module).items() if "drop" in name or "jitter" in name}
    if isinstance(module, nn.modules.dropout._DropoutNd):
        rates["p"] = module.p
    return any(isinstance(rate, float) and rate > 0 for rate in rates.values())
