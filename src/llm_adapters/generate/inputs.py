"""What a model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def accepted(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a model's forward by name; of a compiled model, those of the model inside."""
    return inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
