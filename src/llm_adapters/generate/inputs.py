"""What a model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def accepted(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a model's forward by name; of a compiled model, those of the model inside."""
    return inspect.signature(getattr(model, "_orig_mod", model).forward).parameters


def context_length(model: Any) -> int | None:
    """Tokens that a model was made for, by its config; None where it does not say."""
    config = model.config.get_text_config(decoder=True)
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)
