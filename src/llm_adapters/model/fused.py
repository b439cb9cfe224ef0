"""RMS norms, rotary positions and gated activations in fewer passes over memory, for training.

As models write them, each is a dozen small operators with as many again in the backward pass, and what they save for
it is more than their inputs. A map is replaced only where its numbers on random states are those of the formula here.
Two modules compute these formulas, each with the same three functions: ``fused_plain``, and ``fused_liger`` on a GPU
where Liger's kernels are installed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_adapters.model import fused_liger, fused_plain
from llm_adapters.model.drawing import draws
from llm_adapters.model.recomputed import recomputed

_ROTARY = "apply_rotary_pos_emb"  # what transformers calls it in the module of every model that has it
_LINEARS = ("gate_proj", "up_proj", "down_proj")


class Fused:
    """The maps of a model that can be replaced.

    Args:
        model: any module, on any device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._rotations: dict[Any, Callable[..., Any]] = {}  # by the Python module that has one
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for module in model.modules():
                forward = _replacement(module)
                if forward is not None:
                    self._forwards.append((module, partial(_forward, module, forward)))
            for home in {sys.modules.get(type(module).__module__) for module in model.modules()}:
                theirs = _own_rotary(home)
                if theirs is not None and _is_rotary(theirs):
                    self._rotations[home] = partial(_rotary, theirs)
        fused_liger.try_on({(x.device, x.dtype) for x in model.parameters() if x.is_floating_point()})

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While it lasts, the model computes in fewer passes what it takes gradients of: see ``_kernels``."""
        before: dict[Any, Any] = {home: _own_rotary(home) for home in self._rotations}
        for module, forward in self._forwards:
            vars(module)["forward"] = forward  # the instance's own; hooks stay in force
        for home, function in self._rotations.items():
            setattr(home, _ROTARY, function)
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del vars(module)["forward"]
            for home, function in before.items():
                setattr(home, _ROTARY, function)


def has_kernels(device: torch.device) -> bool:
    """Whether anything can be computed in fewer passes there."""
    return device.type in (fused_liger.DEVICE, "meta", "cpu")


def _kernels(*states: Tensor) -> ModuleType | None:
    """What computes these in fewer passes, in a pass that gradients are taken of, without autocast, if anything does.

    Whether one is taken of these states themselves must not matter: an adapter would see the layers below it rounded
    otherwise when another, lower one is trained beside it.
    """
    device, dtype = states[0].device, states[0].dtype
    if not torch.is_grad_enabled() or any(x.device != device or x.dtype != dtype for x in states):
        return None
    if torch.is_autocast_enabled("cpu" if device.type == "meta" else device.type):
        return None
    if fused_liger.works_on(device, dtype):
        return fused_liger
    return fused_plain if has_kernels(device) else None


def _replacement(module: nn.Module) -> Callable[[nn.Module, Tensor], Tensor | None] | None:
    """What can stand in for the module's own ``forward(states)``, if anything can; None of it: not for these."""
    try:
        parameters = inspect.signature(type(module).forward).parameters
    except (AttributeError, TypeError, ValueError):  # scripted, or not written in Python
        return None
    if "forward" in vars(module) or len(parameters) != 2 or draws(module):
        return None
    for offset in (0.0, 1.0):
        if _is_norm(module, offset):
            return partial(_norm, offset)
    return _gated if _is_gated(module) else None


def _forward(module: nn.Module, fewer: Callable[[nn.Module, Tensor], Tensor | None], *given: Any, **named: Any) -> Any:
    """The module's ``forward``, in fewer passes if it is given nothing but states for which ``fewer`` has a way."""
    found = fewer(module, given[0]) if len(given) == 1 and not named else None
    return type(module).forward(module, *given, **named) if found is None else found


def _computes(module: nn.Module, parts: Mapping[str, Any], formula: Callable[[Tensor], Tensor]) -> bool:
    """Whether the module, with small parts in the places of its own, computes a formula, of any size of states.

    In small ones an ε shows, in large ones a limit.
    """
    try:
        trial: Any = type(module).__new__(type(module))
        vars(trial).update({**vars(module), **parts, "training": True})
        for size in (0.001, 1.0, 1000.0):
            states = size * torch.randn(2, 3, 8)
            expected = formula(states)
            found = type(module).forward(trial, states)
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
                return False
    except Exception:
        return False
    return True


# -- RMS norms ----------------------------------------------------------------------------------------


def _is_norm(module: nn.Module, offset: float) -> bool:
    """Whether it is x / √(mean x² + ε) · (offset + weight)."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if [name for name, _ in module.named_parameters()] != ["weight"] or weight is None or epsilon is None:
        return False
    trial = nn.Parameter(torch.randn(8))

    def formula(states: Tensor) -> Tensor:
        return states * (states.square().mean(-1, keepdim=True) + epsilon).rsqrt() * (offset + trial)

    return weight.dim() == 1 and _computes(module, {"_parameters": {"weight": trial}}, formula)


def _epsilon(module: nn.Module) -> float | None:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _norm(offset: float, module: nn.Module, states: Tensor) -> Tensor | None:
    weight: Any = module.weight
    kernels = None if weight.requires_grad else _kernels(states, weight)
    if kernels is None or (offset and kernels is fused_plain and states.dtype != torch.float32):
        return None  # a sum of offset and weight that is rounded would be another weight
    return recomputed(kernels.norm, states, weight, offset, _epsilon(module))


# -- rotary positions ---------------------------------------------------------------------------------


def _own_rotary(home: Any) -> Callable[..., Any] | None:
    """The function of a Python module that turns queries and keys, under what stands in for it."""
    found = getattr(home, _ROTARY, None)
    return found.args[0] if isinstance(found, partial) and found.func is _rotary else found


def _is_rotary(function: Callable[..., Any]) -> bool:
    """Whether it turns the two halves of every head against each other."""
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8)
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    try:
        return all(
            torch.allclose(theirs, fused_plain.turned(states, cos[:, None], sin[:, None]), rtol=1e-5, atol=1e-6)
            for theirs, states in zip(function(query, key, cos, sin), (query, key), strict=True)
        )
    except Exception:
        return False


def _rotary(theirs: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Queries and keys (B, H, T, d) turned, if all that is given are they, cosines and sines (B, T, d)."""
    if named or len(given) != 4 or not all(isinstance(each, Tensor) for each in given):
        return theirs(*given, **named)
    q, k, cos, sin = given
    whole = q.dim() == 4 and q.shape[2:] == k.shape[2:] == cos.shape[1:] == sin.shape[1:]
    kernels = _kernels(q, k, cos, sin) if whole and not cos.requires_grad else None
    return theirs(q, k, cos, sin) if kernels is None else kernels.rotary(q, k, cos, sin)


# -- gated activations --------------------------------------------------------------------------------


def _is_gated(module: nn.Module) -> bool:
    """Whether it is down(silu(gate(x)) · up(x))."""
    if [name for name, part in module.named_children() if next(part.parameters(), None) is not None] != list(_LINEARS):
        return False
    gate, up, down = (nn.Linear(*sizes) for sizes in ((8, 16), (8, 16), (16, 8)))
    small = {**module._modules, **dict(zip(_LINEARS, (gate, up, down), strict=True))}
    return _computes(module, {"_modules": small}, lambda x: down(functional.silu(gate(x)) * up(x)))


def _gated(module: Any, states: Tensor) -> Tensor | None:
    passed_over = [part for name, part in module._modules.items() if name not in _LINEARS]
    kernels = _kernels(states)
    if kernels is None or any(part._forward_hooks or part._forward_pre_hooks for part in passed_over):
        return None
    result: Tensor = module.down_proj(recomputed(kernels.gated, module.gate_proj(states), module.up_proj(states)))
    return result
