"""Options of the recipe that not every training can have."""

from __future__ import annotations

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import TrainingError
from llm_adapters.train.frozen_layers import refuse_nothing_below

ALONE = ("compile", "cache_frozen_layers")
"""Fields for one adapter that trains in one process."""


def check_options(settings: TrainSection, adapter: Adapter, processes: int) -> None:
    """Refuse options that this adapter, or so many processes, cannot have.

    Raises:
        TrainingError: one of them.
    """
    for option in ALONE:
        if getattr(settings, option) and processes > 1:
            raise TrainingError(
                f"train.{option} is for a training in one process, and this is one of {processes}",
                mend=f"train.{option}=false",
            )
    if settings.cache_frozen_layers:
        refuse_nothing_below(adapter)
