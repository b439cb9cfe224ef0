"""What a training will take, before any weight is loaded: parameters, tokens, steps, peak memory, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import psutil
import torch

from llm_adapters.adapters.attach import attach
from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import ConfigError
from llm_adapters.model import load_config
from llm_adapters.model.memory import free_bytes
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.runs.training_shape import TrainingShape
from llm_adapters.train.devices import EFFICIENCY, Gpu
from llm_adapters.train.memory import compute_activations_again
from llm_adapters.train.operations import Operations
from llm_adapters.train.probe import probe

_KERNELS = 100_000_000  # of a CPU's process, beyond what it holds while planning: accelerate, kernels, their buffers
_HOLES = 0.25  # of what comes and goes, kept by the C library's heap between blocks in use; measured, docs/plan.md
_GPU_PROCESS = 600_000_000  # CUDA context and workspaces


@dataclass(frozen=True)
class Plan:
    """What is predicted.

    Attributes:
        base, trained: parameters.
        dtype: of the base.
        tokens: read in training, padding not counted.
        steps: optimiser steps.
        micro_batch: rows that go through the model at once.
        packed: whether without padding.
        memory: bytes by what holds them when most is held; they add up to the peak.
        capacity: bytes that are there.
        seconds: of the training loop, validation included.
        rate: where the speed comes from, in words.
        mends: what would take less memory, and the peak with it; filled where the peak exceeds the capacity.
    """

    base: int
    trained: int
    dtype: str
    tokens: int
    steps: int
    micro_batch: int
    packed: bool
    memory: Mapping[str, int]
    capacity: int
    seconds: float
    rate: str
    mends: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes when most is held."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.capacity


def plan(
    config: RunConfig,
    *,
    gpu: Gpu | None = None,
    processes: int = 1,
    note: Callable[[str], None] = lambda _text: None,
) -> Plan:
    """Predict the training of a configuration on this machine, or on a GPU that need not be there.

    Peak memory on a CPU is the process's resident memory, on a GPU what torch allocates there and the CUDA context.

    Args:
        gpu: in the place of this machine.
        processes: that share the training, each on a GPU of its own; what is predicted is the busiest of them. What
            they say to each other takes no time here.
        note: told of what takes a moment.

    Raises:
        UserError: whatever is wrong with the configuration, the model's or the data; several processes on a CPU, whose
            cores they would share.
    """
    if processes > 1 and gpu is None and not torch.cuda.is_available():
        raise ConfigError(
            f"--processes {processes} without a GPU: processes on one CPU share its cores, so nothing is known of them",
            mend="name a GPU: --gpu H100, or --gpu-memory and --gpu-tflops",
        )
    there = None if gpu is None else torch.bfloat16 if gpu.bfloat16 else torch.float32
    shape = TrainingShape.of(config, dtype=there, processes=processes, note=note)
    with WithoutNumbers():
        adapter = attach(shape.model, list(config.adapter), "plan", tokenizer=shape.tokenizer)
    shape.settle_sharing()
    planned = _Planned(shape, adapter, gpu, _process_bytes(), note)
    note("counting the fullest micro-batch")
    memory = planned.memory(shape)
    seconds, rate = planned.time()
    capacity = planned.capacity()
    return Plan(
        base=shape.parameters, trained=adapter.count(), dtype=str(shape.dtype).removeprefix("torch."),
        tokens=shape.work.tokens, steps=shape.work.steps, micro_batch=shape.size, packed=shape.batches.packed,
        memory=memory, capacity=capacity, seconds=seconds, rate=rate,
        mends=planned.mends(sum(memory.values())) if sum(memory.values()) > capacity else {},
    )  # fmt: skip


@cache
def _process_bytes() -> int:
    """What this process holds; predicting makes it grow, and no training begins with that, so the first time counts."""
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class _Planned:
    """A training with its adapter, on a GPU or on this machine; ``process`` is what this process held before."""

    shape: TrainingShape
    adapter: Any
    gpu: Gpu | None
    process: int
    note: Callable[[str], None]

    def memory(self, shape: TrainingShape) -> dict[str, int]:
        """Bytes by what holds them, what is outside of the training included."""
        parts = shape.memory(self.adapter)
        if self.gpu is None and shape.device.type == "cpu":
            passing = parts["gradients, saved activations"] + parts["backward pass, logits"]
            return {
                **parts,
                **shape.copies(self.adapter),
                "holes in the heap": int(_HOLES * passing),
                "process: Python, libraries, data": self.process + _KERNELS,
            }
        return {**parts, "CUDA context, workspaces": _GPU_PROCESS}

    def capacity(self) -> int:
        """Bytes that are there: of the GPU, or free on this machine."""
        if self.gpu is not None:
            return int(self.gpu.gigabytes * 1e9)
        device = self.shape.device
        return free_bytes(device) + (self.process if device.type == "cpu" else 0)

    def time(self) -> tuple[float, str]:
        """Seconds of the training loop, and where the rate comes from."""
        shape = self.shape
        operations = Operations.of(shape.model, shape.batches)
        extents, judged = shape.extents, shape.judged
        layers = operations.of_layers(extents) + operations.of_layers(judged, backward=False)
        if self.gpu is not None:
            logits = operations.of_logits(extents) + operations.of_logits(judged, backward=False)
            rate = self.gpu.rate(shape.dtype)
            best = f"{EFFICIENCY:.0%} of what {self.gpu.name} does at best, assumed, not measured"
            if shape.processes > 1:
                best += f"; each of {shape.processes} processes, without what they say to each other"
            return (layers + logits) / rate, f"{rate / 1e12:.0f} TFLOP/s: {best}"
        self.note("measuring the speed of this machine")
        by_tokens = sorted(shape.work.pieces, key=lambda piece: sum(len(example.input_ids) for example in piece))
        typical = [by_tokens[len(by_tokens) * place // 3] for place in (1, 2)] if len(by_tokens) > 2 else by_tokens
        model = shape.config.model
        rates = probe(
            load_config(model.source, trust_remote_code=model.trust_remote_code), shape.config.adapter, typical,
            dtype=shape.dtype, device=shape.device, packing=shape.config.train.packing, prepacked=shape.prepacked > 0,
            fused=not shape.config.train.compiles, sharing=shape.batches.sharing, tokenizer=shape.tokenizer,
        )  # fmt: skip
        rows = sum(extent.logits for extent in extents) + sum(extent.logits for extent in judged) / 2
        updates = shape.work.steps * self.adapter.count()
        seconds = layers / rates.layers + rows * rates.logits + updates * rates.optimizer
        return seconds, f"{rates.layers / 1e9:.0f} GFLOP/s, measured here on layers of the same shape"

    def mends(self, held: int) -> dict[str, int]:
        """The peak with fewer rows at once, with checkpointing, and with smaller weights; now it is ``held``."""
        found: dict[str, int] = {}
        shape = self.shape

        def peak(size: int) -> int:
            return sum(self.memory(shape.with_rows(size)).values())

        smaller = sorted({shape.size // 2, 1} - {0, shape.size}, reverse=True)
        found |= {f"train.micro_batch={size}": peak(size) for size in smaller}
        checkpoints = getattr(shape.model, "supports_gradient_checkpointing", False)
        if checkpoints and not shape.config.train.gradient_checkpointing:
            compute_activations_again(shape.model)
            found |= {
                f"train.gradient_checkpointing=true train.micro_batch={size}": peak(size) for size in (shape.size, 1)
            }
            shape.model.gradient_checkpointing_disable()
        if shape.dequantised or shape.sharded:
            return found
        if shape.processes > 1:
            shared = sum(replace(shape, sharded=True).weights.values())
            found["train.distributed=fsdp (the base's weights alone)"] = held - shape.base_bytes + shared
        here = self.gpu is None and shape.device.type == "cpu"
        others = held - shape.base_bytes - (shape.prepacked if here else 0)
        if shape.dtype == torch.float32:  # of smaller ones there are no copies
            found["model.dtype=bfloat16 (the base's weights alone)"] = others + shape.base_bytes // 2
        copied = shape.prepacked_if(quantised=True) if here else 0
        found["model.quantization=bnb-nf4 (the base's weights alone)"] = others + shape.in_nf4 + copied
        return found
