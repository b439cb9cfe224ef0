"""The fingerprint of a base: enough to say whether, and in what, two bases differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llm_adapters.adapters.base import Base
from llm_adapters.model.quantised_linears import quantised_linears

_PER_TENSOR = 4  # numbers sampled from every parameter
_SHARED = 0.02  # half precision moves what quantisation leaves alone by less than this share
_EXACT = 1e-3  # within one dtype only the rounding to four digits is left
_kept: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def keep_fingerprint(base: Base, known: dict[str, Any]) -> None:
    """Let this be the fingerprint from now on: of a base whose weights will not be all in this process."""
    _kept[base.model] = known


def fingerprint(base: Base) -> dict[str, Any]:
    """Architecture, sizes, and sketches of the weights: evenly spaced numbers, four digits each.

    ``sketch`` samples the embedding and the norms, which survive a change of dtype and quantisation; ``linears``
    samples the matrices, comparable within one dtype only. Both are empty on ``meta``, ``linears`` where it is
    quantised too: an adapter trained on a quantised base fits the unquantised one, and the other way round.
    """
    if base.model in _kept:
        return _kept[base.model]
    config = base.model.config.get_text_config(decoder=True)
    name = str(base.model.config.name_or_path or "")
    packed = {id(p) for m in quantised_linears(base.model) for key, p in m.named_parameters() if key != "bias"}
    own = [
        (key, p) for key, p in base.model.named_parameters()
        if not key.startswith("llm_adapters.") and id(p) not in packed
    ]  # fmt: skip
    embedding = base.sites.embed.output.weight
    kept = [p for _, p in own if p.dim() == 1 or p is embedding]
    matrices = [p for _, p in own if p.dim() > 1 and p is not embedding]
    return {
        "model": Path(name).name if Path(name).exists() else name,  # a path is private to its machine
        "model_type": base.sites.model_type,
        "layers": len(base.sites.layers),
        "width": base.sites.width,
        "vocabulary": int(config.vocab_size),
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "sketch": _sketch(kept),
        "linears": [] if base.quantization else _sketch(matrices),
    }


def _sketch(tensors: Sequence[Tensor]) -> list[float]:
    if any(tensor.is_meta or not tensor.is_floating_point() for tensor in tensors):
        return []
    with torch.no_grad():
        picked = [t.flatten()[:: max(1, t.numel() // _PER_TENSOR)][:_PER_TENSOR].float().cpu() for t in tensors]
    return [float(f"{value:.4g}") for value in torch.cat(picked).tolist()] if picked else []


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs in structure, and what differs in weights only, in words; ``ours`` is the model at hand."""
    structure = [
        f"{key}: trained on {theirs[key]!r}, this model has {ours[key]!r}"
        for key in ("model_type", "layers", "width", "vocabulary")
        if key in theirs and theirs[key] != ours[key]
    ]
    if structure:
        return structure, []
    same_dtype = ours["dtype"] == theirs.get("dtype")
    far = _far(ours["sketch"], theirs.get("sketch", []), _EXACT if same_dtype else _SHARED)
    if same_dtype:
        far += _far(ours["linears"], theirs.get("linears", []), _EXACT)
    if not far:
        return [], []
    named = f"trained on '{theirs.get('model') or 'an unnamed model'}', this is '{ours['model'] or 'unnamed'}'"
    return [], [f"weights: {far} of the sampled numbers differ ({named})"]


def _far(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> int:
    """How many pairs differ by more than ``tolerance`` of their size; 0 where either side has no sketch."""
    if not ours or not theirs:
        return 0
    floor = 0.05 * max(map(abs, theirs))
    pairs = zip(ours, theirs, strict=False)
    return abs(len(ours) - len(theirs)) + sum(abs(a - b) > tolerance * max(abs(b), floor) for a, b in pairs)
