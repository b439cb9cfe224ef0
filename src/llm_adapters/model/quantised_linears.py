"""The quantised linear maps of a model: which they are, what they compute with, and what a model weighs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm_adapters.model.quantization import GROUP, KINDS, stored_quantization
from llm_adapters.model.sites import is_linear, linear_features

_BITSANDBYTES = ("Params4bit", "Int8Params")
_FOR_CPU = "support_avx512bf16_for_cpu"


def is_quantised(module: nn.Module) -> bool:
    """Whether ``module`` is a linear map without a plain floating-point weight matrix."""
    if not is_linear(module):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() < 2:
        return True
    size_in, size_out = linear_features(module)
    plain = type(weight) in (nn.Parameter, Tensor, DTensor) and type(weight.data) in (Tensor, DTensor)
    # A weight that another rank or an offloader holds is empty here, and no less plain for it.
    return not plain or weight.numel() not in (0, size_in * size_out)


def quantised_linears(model: nn.Module) -> list[nn.Module]:
    """The quantised linear maps of ``model``."""
    return [module for module in model.modules() if is_quantised(module)]


def quantization_of(model: Any) -> str | None:
    """The kind of ``model``'s quantisation: what its config states, or else the class of a quantised weight."""
    stated = stored_quantization(model.config)
    if stated is not None:
        return stated
    found = quantised_linears(model)
    return type(getattr(found[0], "weight", found[0])).__name__ if found else None


def says_its_weight(module: Any) -> bool:
    """Whether :func:`dequantised` is no more than reading the weight."""
    weight = getattr(module, "weight", None)
    if type(weight).__name__ in _BITSANDBYTES:
        return True
    return isinstance(weight, Tensor) and type(weight).dequantize is not Tensor.dequantize


@torch.no_grad()
def dequantised(module: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that a quantised linear map computes with, as a new tensor.

    A kind that cannot say it is asked for the images of the unit vectors.
    """
    weight = getattr(module, "weight", None)
    if type(weight).__name__ in _BITSANDBYTES:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        state = getattr(module, "state", None)
        return dequantize_bnb_weight(weight, state).to(dtype)
    if weight is not None and says_its_weight(module):
        return weight.dequantize().to(dtype)
    device = next(tensor.device for tensor in [*module.parameters(), *module.buffers()])
    unit = torch.eye(linear_features(module)[0], dtype=dtype, device=device)
    images = module.forward(unit)  # not module(…): no hook shall see it
    bias = getattr(module, "bias", None)
    return (images if bias is None else images - bias.to(images.dtype)).t().to(dtype)


def parameter_count(model: nn.Module) -> int:
    """The number of a model's parameters, however many of them share a byte."""
    quantised = quantised_linears(model)
    packed = {id(parameter) for module in quantised for key, parameter in module.named_parameters() if key != "bias"}
    plain = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in packed)
    return plain + sum(size_in * size_out for size_in, size_out in map(linear_features, quantised))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, with the scales of quantised ones and with buffers; shared memory counts once."""
    kept: list[Tensor] = [*model.state_dict(keep_vars=True).values(), *model.buffers()]
    sizes = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for t in kept for part in plain_parts(t)
    }
    return sum(sizes.values())


def bytes_as(model: Any, name: str) -> tuple[int, int]:
    """What a model that has no weights yet (on the meta device) will weigh as a kind of ``KINDS``.

    Returns:
        bytes of its weights and buffers, and of the largest weight when it is dequantised to compute.
    """
    kind = KINDS[name]
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    largest = 0
    for module in model.modules():
        if not is_linear(module) or module is model.get_output_embeddings():
            continue
        weight, width = module.weight, linear_features(module)[0]
        if name == "torchao-int4" and width % GROUP:
            continue
        held += round(weight.numel() * (kind.bits + kind.scales(width, weight.dtype)) / 8) - weight.nbytes
        largest = max(largest, weight.nbytes)
    return held, largest


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor of another class is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or isinstance(tensor, DTensor):
        return [tensor]
    return [part for name in flatten()[0] for part in plain_parts(getattr(tensor, name))]


def keep_layout(module: Any) -> bool:
    """Let a 4-bit linear map of bitsandbytes keep the layout of its weight; True where it would have changed it.

    On CPUs with bfloat16 instructions the first pass without a gradient repacks it in place: from then on no pass has
    a gradient, all round to bfloat16, and inner sizes that are no multiple of the block fail.
    """
    if not getattr(module, _FOR_CPU, False):
        return False
    setattr(module, _FOR_CPU, False)
    if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
        module.state_dict()  # unpacks
    return True


def repack(module: nn.Module) -> None:
    """Allow again what :func:`keep_layout` forbade."""
    setattr(module, _FOR_CPU, True)
