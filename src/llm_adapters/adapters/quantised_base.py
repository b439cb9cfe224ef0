"""What a quantised base needs while adapters are attached: gradients that pass, in weights that keep their layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llm_adapters.model.quantised_linears import dequantised, keep_layout, quantised_linears, repack


class _PassGradient(torch.autograd.Function):
    """``y = Q(x)`` as computed, ``∂L/∂x = ∂L/∂y W`` with W dequantised in the backward pass: nothing is saved.

    The libraries' own ways save the dequantised weight (torchao, 8 bit), or the input (bitsandbytes, 8 bit), pass a
    wrong gradient (quantised activations) or none (int4 kernels).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, module: nn.Module) -> Tensor:
        ctx.module, ctx.dtype = module, x.dtype
        ctx.mark_dirty(y)  # given back as it is, and an adapter beside it may overwrite it
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient @ dequantised(ctx.module, gradient.dtype)).to(ctx.dtype), None, None


def _pass_gradient(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    x = args[0] if args else next(iter(kwargs.values()))
    if not (torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad):
        return None
    return _PassGradient.apply(x, output.detach(), module)


# What transformers.Trainer asks of a model's quantiser; without peft, of which alone it knows, it would refuse.
_THROUGH_ADAPTERS = {"is_trainable": True, "is_qat_trainable": True}


class QuantisedBase:
    """The quantised linear maps of a base that adapters are attached to; without any, nothing happens."""

    def __init__(self, model: Any) -> None:
        self.linears = quantised_linears(model)
        self._repacking: list[nn.Module] = []
        self._quantizer = getattr(model, "hf_quantizer", None) if self.linears else None

    def prepare(self) -> None:
        """Make the base ready for training adapters on it."""
        self._repacking = [module for module in self.linears if keep_layout(module)]
        if self._quantizer is not None:
            kind = type(self._quantizer)
            self._quantizer.__class__ = type(kind.__name__, (kind,), dict(_THROUGH_ADAPTERS))

    def restore(self) -> None:
        """Put back what :meth:`prepare` changed."""
        for module in self._repacking:
            repack(module)
        if self._quantizer is not None:
            self._quantizer.__class__ = type(self._quantizer).__bases__[0]

    def hooks(self) -> list[Any]:
        """Install what passes gradients through, inside of every adapter's hooks; returns the handles."""
        return [module.register_forward_hook(_pass_gradient, with_kwargs=True, prepend=True) for module in self.linears]
