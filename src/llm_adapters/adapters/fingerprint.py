"""The fingerprint of a base: enough to say whether, and in what, two bases differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_adapters.adapters.base import Base

_SAMPLES = 48
_TOLERANCE = 0.02  # half precision and quantisation move single weights by less than this share of their spread


def fingerprint(base: Base) -> dict[str, Any]:
    """Architecture, sizes, and a sketch of the weights: a few evenly spaced numbers that survive a change of dtype."""
    config = base.model.config.get_text_config(decoder=True)
    name = str(base.model.config.name_or_path or "")
    return {
        "model": Path(name).name if Path(name).exists() else name,  # a path is private to its machine
        "model_type": base.sites.model_type,
        "layers": len(base.sites.layers),
        "width": base.sites.width,
        "vocabulary": int(config.vocab_size),
        "sketch": _sketch(base.model),
    }


def _sketch(model: Any) -> list[float]:
    """Evenly spaced numbers of the embedding and the norms, which quantisation leaves alone; none on ``meta``."""
    chosen = [p for key, p in model.named_parameters() if p.dim() == 1 and not key.startswith("llm_adapters.")]
    tensors: list[Tensor] = [model.get_input_embeddings().weight, *chosen[:: max(1, len(chosen) // 8)]]
    if any(tensor.is_meta or not tensor.is_floating_point() for tensor in tensors):
        return []
    with torch.no_grad():
        picked = [t.flatten()[:: max(1, t.numel() // _SAMPLES)][:_SAMPLES].float().cpu() for t in tensors]
    return [float(f"{value:.4g}") for value in torch.cat(picked).tolist()]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs in structure, and what differs in weights only, in words; ``ours`` is the model at hand."""
    structure = [
        f"{key}: trained on {theirs[key]!r}, this model has {ours[key]!r}"
        for key in ("model_type", "layers", "width", "vocabulary")
        if key in theirs and theirs[key] != ours[key]
    ]
    a, b = ours.get("sketch", []), theirs.get("sketch", [])
    weights = []
    if not structure and a and b:
        spread = max(map(abs, b)) or 1.0
        off = [abs(x - y) for x, y in zip(a, b, strict=False)]
        far = sum(difference > _TOLERANCE * max(abs(y), 0.05 * spread) for difference, y in zip(off, b, strict=False))
        if len(a) != len(b) or far > math.ceil(len(b) / 50):
            weights = [
                f"weights: {far} of {len(b)} sampled numbers differ "
                f"(trained on '{theirs.get('model') or 'an unnamed model'}', this is '{ours['model'] or 'unnamed'}')"
            ]
    return structure, weights
