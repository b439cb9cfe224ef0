"""The maps of ``fused`` on a GPU by kernels of Liger (extra ``[liger]``) and torch, where a trial shows they do."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llm_adapters.model import fused_plain
from llm_adapters.model.trial import passed

INSTALLED = find_spec("liger_kernel") is not None
DEVICE = "cuda"


def norm(states: Tensor, weight: Tensor, offset: float, epsilon: float) -> Tensor:
    """x / √(mean x² + ε) · (offset + weight), of states (…, d)."""
    if not offset:  # torch's own kernel, which is launched from C++
        return fused_plain.norm(states, weight, offset, epsilon)
    # Not in place: the gradient that comes in may be that of a residual sum, which others read too.
    result: Tensor = _ops("rms_norm", "LigerRMSNormFunction").apply(states, weight, epsilon, offset, "gemma", False)
    return result


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, T, d), turned where they are; cosines and sines (B, T, d)."""
    # The only one of the three that Liger launches on the current device instead of that of its inputs.
    with torch.cuda.device(q.device) if q.device.type == "cuda" else nullcontext():
        turned: tuple[Tensor, Tensor] = _ops("rope", "LigerRopeFunction").apply(q, k, cos, sin)
    return turned


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up; the backward pass leaves gradients where its inputs were."""
    result: Tensor = _ops("swiglu", "LigerSiLUMulFunction").apply(gate, up)
    return result


def _ops(module: str, function: str) -> Any:
    return getattr(__import__(f"liger_kernel.ops.{module}", fromlist=[function]), function)


_tried: dict[tuple[torch.device, torch.dtype], bool] = {}


def works_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a trial there was passed."""
    return _tried.get((device, dtype), False)


def try_on(places: Iterable[tuple[torch.device, torch.dtype]]) -> None:
    """Find out whether Liger, if it is installed, gives values and gradients of the formulas on these devices.

    A release that no longer does is passed over, with a warning. It is for before a training: within a forward pass
    that checkpoints activations, the gradients of a trial would be taken for those of the pass.
    """
    for device, dtype in places:
        if INSTALLED and device.type == DEVICE and (device, dtype) not in _tried:
            with torch.enable_grad():
                refusal = f"Liger's kernels are installed and not used in {dtype} on {device}"
                _tried[device, dtype] = passed(partial(_works, device, dtype), refusal)


def _works(device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    q, k, cos, sin = draw(2, 4, 3, 8), draw(2, 2, 3, 8), draw(2, 3, 4), draw(2, 3, 4)
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    weight = draw(16)
    return (
        all(
            _agree(
                lambda x, offset=offset: norm(x, weight, offset, 1e-5),
                lambda x, offset=offset: _normed(x, offset + weight.float()),
                draw(3, 16),
            )
            for offset in (0.0, 1.0)
        )
        and _agree(
            lambda q, k: torch.cat(rotary(q, k, cos, sin), 1),
            lambda q, k: torch.cat([_turned(q, cos, sin), _turned(k, cos, sin)], 1),
            q,
            k,
        )
        and _agree(gated, lambda gate, up: functional.silu(gate) * up, draw(3, 16), draw(3, 16))
    )


def _normed(states: Tensor, weight: Tensor) -> Tensor:
    wide = states.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight).to(states.dtype)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def _agree(one: Any, other: Any, *given: Tensor) -> bool:
    """Whether two maps have the same values and gradients, up to the rounding of the dtype."""
    found = []
    for function in (one, other):
        leaves = [x.clone().requires_grad_() for x in given]
        value = function(*(x * 1.0 for x in leaves))  # as in a model, not leaves: they are written over
        value.backward(torch.linspace(-1, 1, value.numel(), device=value.device).view_as(value).to(value.dtype))
        found.append([value.detach(), *(x.grad for x in leaves)])
    tolerance = 1e-5 if given[0].dtype == torch.float32 else 3e-2
    return all(
        torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * float(b.float().abs().max()))
        for a, b in zip(*found, strict=True)
    )
