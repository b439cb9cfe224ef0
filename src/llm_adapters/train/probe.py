"""How fast this machine trains: one to three layers of the real shape with random weights, on real micro-batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_adapters.adapters.attach import attach
from llm_adapters.adapters.method import Method
from llm_adapters.data.encoding import Encoded
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from llm_adapters.train.operations import Operations
from llm_adapters.train.workload import Extent

DEEP = 3
"""Layers of the deeper of the two models that are timed."""


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        layers: operations a second of the decoder's layers, all that is no matrix product included.
        logits: seconds a row of logits, with its loss.
        optimizer: seconds a step and trained parameter.
        packed: whether the model packs.
    """

    layers: float
    logits: float
    optimizer: float
    packed: bool


def probe(
    config: Any,
    methods: Sequence[Method],
    pieces: Sequence[Sequence[Encoded]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    packing: bool,
    prepacked: bool = True,
    fused: bool = True,
    sharing: bool = False,
    tokenizer: Any = None,
    rounds: int = 3,
) -> Rates:
    """Train a shallow model for a few seconds.

    Args:
        config: of the model.
        methods: of the adapter; they stand in every layer here.
        pieces: micro-batches like those of the training.
        dtype, device: of the base.
        packing: whether to pack if the model can.
        prepacked: whether frozen weights are copied into the layout of the processor's kernels.
        fused: whether norms, rotations and activations are computed in fewer passes, and some things again.
        sharing: whether a beginning that a micro-batch shares is computed once.
        tokenizer: needed only to initialise virtual tokens from text.
        rounds: measurements of every micro-batch, of which the median counts; the depths take turns.
    """
    everywhere = [m.model_copy(update={"layers": "all"}) if "layers" in type(m).model_fields else m for m in methods]
    deep = min(DEEP, int(config.get_text_config(decoder=True).num_hidden_layers))
    one, more = (
        _Shallow(
            config, depth, everywhere, dtype, device,
            packing=packing, prepacked=prepacked, fused=fused, sharing=sharing, tokenizer=tokenizer,
        )
        for depth in (1, deep)
    )  # fmt: skip
    for each in (one, more):
        each.seconds(pieces[0])  # the first pass prepares kernels and memory
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        seconds.append((sum(map(one.seconds, pieces)), sum(map(more.seconds, pieces))))
    few, many = (median(found) for found in zip(*seconds, strict=True))
    packed = one.batches.packed
    extents = [Extent.of(piece, packed=packed, sharing=sharing) for piece in pieces]
    done, all_done = (each.operations().of_layers(extents) for each in (one, more))
    # What a model of one layer takes beside it is the embedding, the logits and the loss. With one layer alone, or
    # where the clock says that more layers take no longer, nothing tells them apart.
    tellable = many > few and all_done > done
    beside = max(0.0, few - (many - few) / (deep - 1)) if tellable else 0.0
    return Rates(
        layers=(all_done - done) / (many - few) if tellable else all_done / many,
        logits=beside / max(1, sum(extent.logits for extent in extents)),
        optimizer=more.optimizer_seconds(),
        packed=packed,
    )


class _Shallow:
    """The first layers of a model, with random weights and a fresh adapter."""

    def __init__(
        self,
        config: Any,
        depth: int,
        methods: Sequence[Method],
        dtype: torch.dtype,
        device: torch.device,
        *,
        packing: bool,
        prepacked: bool,
        fused: bool,
        sharing: bool,
        tokenizer: Any,
    ) -> None:
        self.methods, self.tokenizer, self.config = methods, tokenizer, shallow_config(config, depth)
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
        self.adapter = attach(self.model, list(methods), "probe", tokenizer=tokenizer)
        self.model.train()
        self.batches = Batches(
            self.model, pad_id=0, device=device, packed=packing, prepacked=prepacked, fused=fused, recompute=fused
        )
        self.batches.sharing = sharing
        self.device = device
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), fused=True)

    def seconds(self, piece: Sequence[Encoded]) -> float:
        """Of a forward and a backward pass."""
        began = time.perf_counter()
        with self.batches.in_force():
            summed_loss(self.model, self.batches.tensors(piece), self.batches.head).backward()
        self._wait()
        return time.perf_counter() - began

    def optimizer_seconds(self) -> float:
        """Seconds of clipping and AdamW, a parameter; the first step, which makes the moments, does not count."""
        found = []
        for _ in range(3):
            began = time.perf_counter()
            torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
            self.optimizer.step()
            self._wait()
            found.append(time.perf_counter() - began)
        return min(found[1:]) / self.adapter.count()

    def operations(self) -> Operations:
        """Counted on a copy without numbers."""
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(self.config)
        with WithoutNumbers():
            attach(empty, list(self.methods), "probe", tokenizer=self.tokenizer)
        return Operations.of(
            empty.train(), Batches(empty, pad_id=0, device=torch.device("cpu"), packed=self.batches.packed)
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def shallow_config(config: Any, depth: int) -> Any:
    """The configuration of a model of the same shape with fewer layers."""
    fewer = copy.deepcopy(config)
    text = fewer.get_text_config(decoder=True)
    text.num_hidden_layers = min(depth, int(text.num_hidden_layers))
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    return fewer
