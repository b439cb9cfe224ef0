"""What a training will take, before any weight is loaded: parameters, tokens, steps, peak memory, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from llm_adapters.adapters.attach import attach
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.encoding import Encoded
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.model import dtype_on, empty_model, load_config, load_tokenizer
from llm_adapters.model.memory import free_bytes
from llm_adapters.model.quantised_linears import bytes_as
from llm_adapters.model.quantization import KINDS, stored_quantization
from llm_adapters.study.training_data import TrainingData
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import WithoutNumbers, count
from llm_adapters.train.devices import EFFICIENCY, Gpu
from llm_adapters.train.loss import labelled_tokens
from llm_adapters.train.operations import Operations
from llm_adapters.train.probe import probe
from llm_adapters.train.workload import Extent, Workload

_MOMENTS = 2  # of AdamW, each as large as the adapter
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


def plan(config: RunConfig, *, gpu: Gpu | None = None, note: Callable[[str], None] = lambda _text: None) -> Plan:
    """Predict the training of a configuration on this machine, or on a GPU that need not be there.

    Peak memory on a CPU is the process's resident memory, on a GPU what torch allocates there and the CUDA context.

    Raises:
        UserError: whatever is wrong with the configuration, the model's or the data.
    """
    planned = _Planned.of(config, gpu, note)
    work, memory = planned.work, planned.memory()
    seconds, rate = planned.time()
    capacity = planned.capacity()
    return Plan(
        base=planned.base, trained=planned.trained, dtype=str(planned.dtype).removeprefix("torch."),
        tokens=work.tokens, steps=work.steps, micro_batch=planned.size, packed=planned.batches.packed,
        memory=memory, capacity=capacity, seconds=seconds, rate=rate,
        mends=planned.mends() if sum(memory.values()) > capacity else {},
    )  # fmt: skip


@dataclass(frozen=True)
class _Planned:
    config: RunConfig
    gpu: Gpu | None
    device: torch.device
    dtype: torch.dtype
    model: Any
    tokenizer: Any
    base: int
    trained: int
    base_bytes: int
    dequantised: int
    in_nf4: int
    adapter_bytes: int
    batches: Batches
    examples: Sequence[Encoded]
    judges: Sequence[Encoded]
    size: int
    work: Workload
    process: int
    note: Callable[[str], None]

    @classmethod
    def of(cls, config: RunConfig, gpu: Gpu | None, note: Callable[[str], None]) -> _Planned:
        source, settings = config.model, config.train
        template, data = get_template(config.data.template), TrainingData.of(config.data, config.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype_on(source.dtype, device)
        if gpu is not None and source.dtype == "auto":
            dtype = torch.bfloat16 if gpu.bfloat16 else torch.float32
        model: Any = empty_model(source.source, dtype=dtype, trust_remote_code=source.trust_remote_code)
        total = sum(parameter.numel() for parameter in model.parameters())
        kind = source.quantization if source.quantization in KINDS else stored_quantization(model.config)
        held, dequantised = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]), 0
        if kind in KINDS:
            held, dequantised = bytes_as(model, kind)
        in_nf4 = sum(bytes_as(model, "bnb-nf4"))  # before the adapter is a part of the model
        tokenizer = load_tokenizer(source.source, trust_remote_code=source.trust_remote_code)
        with WithoutNumbers():
            adapter = attach(model, list(config.adapter), "plan", tokenizer=tokenizer)
        note("encoding the training data")
        encoded, judges = (
            [
                template.encode(tokenizer, row, max_length=config.data.max_length, train_on=config.data.train_on)
                for row in rows
            ]
            for rows in (data.examples, data.validation)
        )
        encoded, judges = ([row for row in rows if labelled_tokens(row.labels)] for rows in (encoded, judges))
        if not encoded:
            raise DataError("no training example has a label left", mend="raise data.max_length")
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batches = Batches(model.train(), pad_id=0, device=torch.device("cpu"), packed=settings.packing)
        size = settings.micro_batch or settings.batch_size
        work = Workload.of(encoded, settings, batches, seed=config.seed, size=size)
        process = int(psutil.Process().memory_info().rss)
        trained_bytes = sum(parameter.nbytes for parameter in adapter.parameters())
        return cls(
            config, gpu, device, dtype, model, tokenizer, total, adapter.count(), held, dequantised, in_nf4,
            trained_bytes, batches, encoded, judges, size, work, process, note,
        )  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Bytes at the fullest micro-batch: the one with most tokens, or with most logits."""
        self.note("counting the fullest micro-batch")
        pieces = list(zip(self.work.extents(packed=self.batches.packed), self.work.pieces, strict=True))
        fullest = {
            id(piece): piece
            for _, piece in (
                max(pieces, key=lambda pair: (pair[0].tokens, pair[0].logits)),
                max(pieces, key=lambda pair: (pair[0].logits, pair[0].tokens)),
            )
        }
        found = [
            count(self.model, self.batches, piece, accumulating=self.work.accumulating) for piece in fullest.values()
        ]
        most = max(found, key=lambda each: each.peak_bytes)
        on_cpu = self.gpu is None and self.device.type == "cpu"
        parts = {
            "base weights": self.base_bytes,
            "adapter, AdamW's moments": (1 + _MOMENTS) * self.adapter_bytes,
            "gradients, saved activations, logits": most.saved_bytes,
            "backward pass": most.peak_bytes - most.saved_bytes,
        }
        if self.dequantised:
            parts["the largest weight, dequantised"] = self.dequantised
        if on_cpu:
            return {
                **parts,
                "holes in the heap": int(_HOLES * most.peak_bytes),
                "process: Python, libraries, data": self.process + _KERNELS,
            }
        return {**parts, "CUDA context, workspaces": _GPU_PROCESS}

    def capacity(self) -> int:
        """Bytes that are there: of the GPU, or free on this machine."""
        if self.gpu is not None:
            return int(self.gpu.gigabytes * 1e9)
        return free_bytes(self.device) + (self.process if self.device.type == "cpu" else 0)

    def time(self) -> tuple[float, str]:
        """Seconds of the training loop, and where the rate comes from."""
        operations = Operations.of(self.model, self.batches)
        packed = self.batches.packed
        extents = self.work.extents(packed=packed)
        every = self.config.train.validate_every or -(-len(self.examples) // self.config.train.batch_size)
        judged: list[Extent] = []
        if self.judges:
            once = self.config.train.model_copy(update={"epochs": 1.0, "steps": None})
            work = Workload.of(self.judges, once, self.batches, seed=self.config.seed, size=self.size)
            judged = work.extents(packed=packed) * -(-self.work.steps // every)
        layers = operations.of_layers(extents) + operations.of_layers(judged, backward=False)
        if self.gpu is not None:
            logits = operations.of_logits(extents) + operations.of_logits(judged, backward=False)
            rate = self.gpu.rate(self.dtype)
            best = f"{EFFICIENCY:.0%} of what {self.gpu.name} does at best, assumed, not measured"
            return (layers + logits) / rate, f"{rate / 1e12:.0f} TFLOP/s: {best}"
        self.note("measuring the speed of this machine")
        by_tokens = sorted(self.work.pieces, key=lambda piece: sum(len(example.input_ids) for example in piece))
        typical = [by_tokens[len(by_tokens) * place // 3] for place in (1, 2)] if len(by_tokens) > 2 else by_tokens
        rates = probe(
            load_config(self.config.model.source, trust_remote_code=self.config.model.trust_remote_code),
            self.config.adapter, typical, dtype=self.dtype, device=self.device, packing=self.config.train.packing,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        rows = sum(extent.logits for extent in extents) + sum(extent.logits for extent in judged) / 2
        seconds = layers / rates.layers + rows * rates.logits + self.work.steps * self.trained * rates.optimizer
        return seconds, f"{rates.layers / 1e9:.0f} GFLOP/s, measured here on layers of the same shape"

    def mends(self) -> dict[str, int]:
        """The peak with fewer rows at once, and with checkpointing."""
        found: dict[str, int] = {}
        settings = self.config.train

        def peak(size: int) -> int:
            work = Workload.of(self.examples, settings, self.batches, seed=self.config.seed, size=size)
            return sum(replace(self, size=size, work=work).memory().values())

        smaller = sorted({self.size // 2, 1} - {0, self.size}, reverse=True)
        found |= {f"train.micro_batch={size}": peak(size) for size in smaller}
        if not settings.gradient_checkpointing and getattr(self.model, "supports_gradient_checkpointing", False):
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            found |= {
                f"train.gradient_checkpointing=true train.micro_batch={size}": peak(size) for size in (self.size, 1)
            }
            self.model.gradient_checkpointing_disable()
        if self.dequantised:
            return found
        held = sum(self.memory().values())
        if self.dtype == torch.float32:
            found["model.dtype=bfloat16 (the base's weights alone)"] = held - self.base_bytes // 2
        found["model.quantization=bnb-nf4 (the base's weights alone)"] = held - self.base_bytes + self.in_nf4
        return found
