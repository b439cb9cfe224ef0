"""Frozen weights in the layout of the processor's own kernels, for decoding and for training."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from llm_adapters.model.memory import free_bytes, total_bytes

_OF_FREE = 0.25  # of the memory that is free before decoding: the copy must not take it from the rows
_OF_ALL = 0.125  # of all memory, for training: what is free differs when it goes on, and then its bits would too


class Prepacked:
    """Copies of a model's linear weights as oneDNN wants them, on a CPU where they make products faster.

    PyTorch's own product of float32 lays a weight out anew in every call, which for the few rows of a decoding step
    costs nearly as much as the product, and its kernels are slower for many rows too; not so MKL on Intel's processors,
    which is as fast without copies. Products of bfloat16 are oneDNN's either way, and copies help decoding alone.
    Outputs are those of ``F.linear`` up to the order of summation.

    Args:
        model: any module; its weights must not change as long as this is used.
        training: whether gradients will pass through; then only weights that are frozen are copied.
    """

    def __init__(self, model: nn.Module, *, training: bool = False) -> None:
        limit = _OF_ALL * total_bytes() if training else _OF_FREE * free_bytes(torch.device("cpu"))
        linears = [module for module in _linears(model, training=training) if _at_hand(module)]
        forth, back = _copied(linears, limit, training=training)
        with torch.no_grad() if training else torch.inference_mode():
            transposed = {module: _packed(module.weight.t()) for module in back}
            self._forwards = [
                (module, partial(linear, module, _packed(module.weight), transposed.get(module))) for module in forth
            ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While it lasts, the model computes with the copies: without gradient, or through frozen weights."""
        for module, forward in self._forwards:
            vars(module)["forward"] = forward  # the instance's own; hooks stay in force
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del vars(module)["forward"]


def bytes_to_train(model: nn.Module) -> int:
    """Bytes of the copies that a training of this model on this machine's CPU will hold, whatever device it is on."""
    forth, back = _copied(_linears(model, training=True), _OF_ALL * total_bytes(), training=True)
    return _bytes(forth) + _bytes(back)


def _copied(linears: list[nn.Linear], limit: float, *, training: bool) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Of which of these there is room for copies: for forward passes first, and then for backward passes."""
    if _bytes(linears) > limit:
        return [], []
    return linears, linears if training and 2 * _bytes(linears) <= limit else []


def _bytes(linears: list[nn.Linear]) -> int:
    return sum(module.weight.nbytes for module in linears)


def _available() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _pays(dtype: torch.dtype, *, training: bool) -> bool:
    """Whether copies make products of this dtype faster on this CPU, by what ``benchmarks/prepacked.py`` showed."""
    if dtype == torch.float32:
        return not _mkl_is_at_home()
    return dtype == torch.bfloat16 and not training and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _mkl_is_at_home() -> bool:
    """Whether PyTorch multiplies float32 with MKL on a processor of MKL's maker."""
    known = Path("/proc/cpuinfo")
    described = known.read_text() if known.is_file() else platform.processor()
    return bool(torch.backends.mkl.is_available()) and "GenuineIntel" in described


def _linears(model: nn.Module, *, training: bool) -> list[nn.Linear]:
    if not _available():
        return []
    return [
        module
        for module in model.modules()
        if _is_plain(module)
        and _pays(module.weight.dtype, training=training)
        and not (training and any(each.requires_grad for each in module.parameters()))
    ]


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Exactly a linear as PyTorch has it, nobody's own kind."""
    return type(module) is nn.Linear and "forward" not in vars(module) and type(module.weight) is nn.Parameter


def _at_hand(module: nn.Linear) -> bool:
    return module.weight.device.type == "cpu"


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def linear(module: nn.Linear, packed: Tensor, transposed: Tensor | None, states: Tensor) -> Tensor:
    """``module(states)``, with its weight packed, and its transpose if that is packed too."""
    if states.dtype != module.weight.dtype or torch.is_autocast_enabled("cpu"):
        return functional.linear(states, module.weight, module.bias)
    if torch.is_grad_enabled() and states.requires_grad:
        flat: Tensor = _PrepackedLinear.apply(states.flatten(0, -2), module, packed, transposed)
        # As PyTorch's own linear map gives it: a tensor that others may overwrite, not a view of one.
        return torch.ops.aten._unsafe_view(flat, [*states.shape[:-1], flat.shape[-1]])
    return product(states, packed, module.bias)


def product(states: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with a packed weight; not for what gradients are taken of."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return output


class _PrepackedLinear(torch.autograd.Function):
    """A linear map with frozen weights, which saves nothing; ``transposed``: packed too, if it is."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, module: nn.Linear, packed: Tensor, transposed: Tensor | None) -> Tensor:
        ctx.weight, ctx.transposed = module.weight, transposed
        return product(states, packed, module.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        inner = outer[0] @ ctx.weight if ctx.transposed is None else product(outer[0], ctx.transposed, None)
        return inner, None, None, None
