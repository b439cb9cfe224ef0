"""Quantised bases: the kinds that can be asked for on loading, and the kind that a model has.

Linear maps of the decoder are quantised; embeddings, the output head and norms stay as they are, which is the default
of both libraries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, get_args

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, TorchAoConfig

from llm_adapters.config.schema import Quantization
from llm_adapters.errors import MissingExtraError, ModelError

NONE = "none"
GROUP = 64
"""Weights that share a scale in ``torchao-int4``; NF4 and FP4 have blocks of the same size."""

_PACKAGES = {"bnb": "bitsandbytes", "torchao": "torchao"}
_METHODS = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}  # quant_method of a checkpoint → package
EXTRA = "quantised"


@dataclass(frozen=True)
class Kind:
    """One kind of quantisation.

    Attributes:
        bits: of a weight, scales not counted.
        scales: bits that a weight's share of the scales takes, from the inner size and the dtype of the scales.
        make: its configuration for transformers, from the compute dtype and the device.
    """

    bits: int
    scales: Callable[[int, torch.dtype], float]
    make: Callable[[torch.dtype, torch.device], Any]


def _four_bits(quant_type: str) -> Callable[[torch.dtype, torch.device], Any]:
    def make(dtype: torch.dtype, _place: torch.device) -> Any:
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )  # fmt: skip

    return make


def _ao_int8(_dtype: torch.dtype, _place: torch.device) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    # set_inductor_config would change torch's matrix precision for the whole process.
    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def _ao_int4(_dtype: torch.dtype, place: torch.device) -> Any:
    if place.type == "cpu":  # its packing for CPUs lives among torchao's prototypes
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False))
    from torchao.quantization import Int4WeightOnlyConfig

    return TorchAoConfig(
        Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )  # the one format whose kernel comes with torch
    )


def _of_blocks(_width: int, _dtype: torch.dtype) -> float:
    return 8 / GROUP + 32 / (GROUP * 256)  # a byte a block, and a float32 for 256 of these


KINDS: dict[str, Kind] = {
    "bnb-nf4": Kind(4, _of_blocks, _four_bits("nf4")),
    "bnb-fp4": Kind(4, _of_blocks, _four_bits("fp4")),
    "bnb-int8": Kind(8, lambda width, _dtype: 32 / width, lambda _dtype, _place: BitsAndBytesConfig(load_in_8bit=True)),
    "torchao-int8": Kind(8, lambda width, dtype: 8 * dtype.itemsize / width, _ao_int8),
    "torchao-int4": Kind(4, lambda _width, dtype: 2 * 8 * dtype.itemsize / GROUP, _ao_int4),  # a scale and a zero
}
assert {NONE, *KINDS} == set(get_args(Quantization))


def check_quantization(name: str, stored: str | None = None) -> None:
    """Refuse what cannot be loaded, before anything is.

    Args:
        name: what is asked for.
        stored: the kind that the checkpoint has already.

    Raises:
        ModelError: there is no such kind, or the checkpoint is quantised in another way.
        MissingExtraError: its library is not installed.
    """
    if name != NONE and name not in KINDS:
        raise ModelError(f"unknown quantization '{name}'", given=name, allowed=[NONE, *KINDS])
    if stored is not None and name not in (NONE, stored):
        raise ModelError(
            f"the checkpoint is quantised already ({stored}), it cannot be made {name}",
            mend="leave quantization out, or load the unquantised checkpoint of this model",
        )
    package = _PACKAGES.get((name if stored is None else stored).partition("-")[0])
    if package is not None:
        _require(package)


def quantization_config(name: str, dtype: torch.dtype, place: torch.device) -> Any:
    """The transformers configuration of a kind; computes in ``dtype``.

    Raises:
        ModelError, MissingExtraError: as :func:`check_quantization`; or the installed library lacks this kind here.
    """
    check_quantization(name)
    try:
        return KINDS[name].make(dtype, place)
    except (ImportError, TypeError, ValueError) as failure:
        raise ModelError(
            f"the installed '{_PACKAGES[name.partition('-')[0]]}' cannot do '{name}' on {place.type}: {failure}",
            mend="another kind (bnb-nf4 and bnb-int8 run anywhere), or another version of the library",
        ) from failure


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise MissingExtraError(package, EXTRA, "a quantised base")
    # It warns of kernels for other hardware, and in every pass of the cast that LLM.int8() consists of.
    logging.getLogger(package).setLevel(logging.ERROR)


def stored_quantization(config: PretrainedConfig) -> str | None:
    """The kind that a model's config states, or None: one of ours, or like ``gptq-4bit``."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    stated: Mapping[str, Any] = given if isinstance(given, Mapping) else given.to_dict()
    method = str(getattr(stated.get("quant_method"), "value", stated.get("quant_method")))
    if method == "bitsandbytes":
        return "bnb-int8" if stated.get("load_in_8bit") else f"bnb-{stated.get('bnb_4bit_quant_type', 'fp4')}"
    if method == "torchao":
        kind = str(stated["quant_type"]["default"]["_type"])
        known = {"Int8WeightOnlyConfig": 8, "Int4WeightOnlyConfig": 4, "PrototypeInt4WeightOnlyConfig": 4}
        return f"torchao-int{known[kind]}" if kind in known else f"torchao-{kind.removesuffix('Config')}"
    return f"{method}-{stated['bits']}bit" if "bits" in stated else method
