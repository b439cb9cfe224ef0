"""GPUs by name: memory, and dense matrix operations a second as their makers give them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm_adapters.errors import ConfigError

EFFICIENCY = 0.3
"""Share of a GPU's rate that training is assumed to reach: a LoRA on a model of LLaMA-7B's shape reached 0.25 to 0.33
on an H100 with 16 rows at once, and 0.07 with 4, where launching sets the pace."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        gigabytes: of memory, 10⁹ bytes each.
        teraflops: 10¹² dense operations a second in 16 bits, without sparsity.
        teraflops32: the same in float32, as torch computes it unless told otherwise (no TF32).
        bfloat16: whether it computes in bfloat16; "auto" is float32 where not.
    """

    name: str
    gigabytes: float
    teraflops: float
    teraflops32: float
    bfloat16: bool = True

    def rate(self, dtype: torch.dtype) -> float:
        """Operations a second that are assumed of training in ``dtype``."""
        return EFFICIENCY * 1e12 * (self.teraflops32 if dtype == torch.float32 else self.teraflops)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40GB", 42.9, 312, 19.5),
        Gpu("A100-80GB", 85.9, 312, 19.5),
        Gpu("H100", 85.9, 989, 67),
        Gpu("H200", 151.0, 989, 67),
        Gpu("L4", 24.2, 121, 30.3),
        Gpu("L40S", 48.3, 362, 91.6),
        Gpu("A10", 24.2, 125, 31.2),
        Gpu("RTX-3090", 25.8, 71, 35.6),
        Gpu("RTX-4090", 25.8, 165, 82.6),
        Gpu("V100-32GB", 34.4, 125, 15.7, bfloat16=False),
        Gpu("T4", 16.1, 65, 8.1, bfloat16=False),
    )
}


def gpu(name: str | None, gigabytes: float | None, teraflops: float | None) -> Gpu | None:
    """The GPU of a name or of given figures; None without either.

    Raises:
        ConfigError: the name is unknown, a figure is missing, or both were given.
    """
    if name is not None and (gigabytes is not None or teraflops is not None):
        raise ConfigError(f"--gpu {name} and figures of a GPU were given", mend="either the name or the figures")
    if name is not None:
        known = {key.lower(): value for key, value in GPUS.items()}
        found = known.get(name.lower().replace(" ", "-"))
        if found is None:
            raise ConfigError(
                f"unknown GPU '{name}'", given=name, allowed=GPUS, mend="or give --gpu-memory GB and --gpu-tflops X"
            )
        return found
    if gigabytes is None and teraflops is None:
        return None
    if gigabytes is None or teraflops is None or gigabytes <= 0 or teraflops <= 0:
        raise ConfigError(
            "a GPU without a name needs its memory and its rate", mend="--gpu-memory 24 --gpu-tflops 121, say"
        )
    return Gpu("the GPU", gigabytes, teraflops, teraflops)
