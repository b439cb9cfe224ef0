"""Weights in the layout of the processor's own kernels, for passes without gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from llm_adapters.model.memory import free_bytes

_SHARE = 0.25  # of the free memory: the copy must not take it from the rows


class Prepacked:
    """Copies of a model's linear weights as oneDNN wants them (float32, CPU; elsewhere there is nothing to do).

    PyTorch's own product of float32 lays a weight out anew in every call, which for the few rows of a decoding step
    costs nearly as much as the product. Outputs are those of ``F.linear`` up to the order of summation.

    Args:
        model: any module; its weights must not change as long as this is used.
    """

    def __init__(self, model: nn.Module) -> None:
        linears = [module for module in model.modules() if _packable(module)] if _available() else []
        size = sum(module.weight.nbytes for module in linears)
        if linears and size > _SHARE * free_bytes(torch.device("cpu")):
            linears = []
        with torch.inference_mode():
            self._forwards = [(module, partial(_linear, _packed(module.weight), module.bias)) for module in linears]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While it lasts, the model computes with the copies. Only under ``torch.inference_mode``."""
        for module, forward in self._forwards:
            vars(module)["forward"] = forward  # the instance's own; hooks stay in force
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del vars(module)["forward"]


def _available() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Exactly a linear as PyTorch has it, nobody's own kind."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def _linear(packed: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return output
