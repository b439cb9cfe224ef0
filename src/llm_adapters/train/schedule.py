"""Learning-rate schedules: a linear warm-up, then linear or cosine to zero, or constant."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["linear", "cosine", "constant"]


def factor(step: int, *, steps: int, warmup: int, schedule: Schedule) -> float:
    """The share of the peak learning rate at ``step`` (from 0); a warm-up longer than the run is cut to it."""
    warmup = min(warmup, steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def scheduler(optimizer: Optimizer, *, steps: int, warmup: int, schedule: Schedule) -> LambdaLR:
    """:func:`factor` as a torch scheduler, stepped once an optimiser step."""
    return LambdaLR(optimizer, lambda step: factor(step, steps=steps, warmup=warmup, schedule=schedule))
