"""How examples go through the model: packed into one row where its attention allows it, padded where not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from llm_adapters.data.collate import collate, collate_packed
from llm_adapters.data.encoding import Encoded
from llm_adapters.model import packed_flash
from llm_adapters.model.fused import Fused
from llm_adapters.model.head import find_head
from llm_adapters.model.memory import sent
from llm_adapters.model.packing import Unguarded, packing
from llm_adapters.model.packing_trial import can_pack, can_share
from llm_adapters.model.prepacked import Prepacked
from llm_adapters.model.recomputed import recomputing
from llm_adapters.model.sites import find_sites
from llm_adapters.train.beginnings import shared_beginning


class Batches:
    """Micro-batches for one model.

    Attributes:
        packed: whether examples stand in one row.
        can_share: whether a beginning that they share can then stand there once.
        sharing: whether it does.
        head: what makes the logits, which may then be made a part at a time; None if that cannot be told apart.

    Args:
        model: a causal language model, with its adapters.
        pad_id: any valid token id.
        device: where it runs.
        packed: whether to pack if the model can.
        prepacked: whether frozen weights may be copied into the layout of the processor's kernels.
        fused: whether norms, rotations and activations may be computed in fewer passes than the model's own.
        recompute: whether what costs little may be computed again in the backward pass instead of being held for it.
        apart: whether the decoder may be called without the model around it.
        on_cpu: whether a CPU will compute, if that does not follow from ``device``: a plan has tensors without numbers.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int,
        device: torch.device,
        packed: bool = True,
        prepacked: bool = True,
        fused: bool = True,
        recompute: bool = True,
        apart: bool = True,
        on_cpu: bool | None = None,
    ) -> None:
        sites = find_sites(model)
        self.decoder: Any = sites.decoder
        self._layers = (sites.decoder, *sites.blocks)
        self.pad_id, self.device = pad_id, device
        # By every process, though one alone tries packing: what it finds out holds where the model will be.
        packed_flash.try_for(model, {(device, weight.dtype) for weight in model.parameters()})
        self.packed = packed and can_pack(model, sites)
        self.can_share = self.packed and can_share(model, sites)
        self.sharing = False
        self.head = find_head(model, sites) if apart else None
        half = model.get_input_embeddings().weight.dtype.itemsize < torch.float32.itemsize
        self._widened = half and (device.type == "cpu" if on_cpu is None else on_cpu)
        self._prepacked = Prepacked(model, training=True) if prepacked else nullcontext
        self._fused = Fused(model) if fused else nullcontext
        self._recomputing = recomputing if recompute else nullcontext

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """What forward and backward passes over :meth:`tensors` stand in."""
        packed = packing(self.decoder, widened=self._widened) if self.packed else nullcontext()
        # Checkpointing, which computes whole layers again, could not let go of what is held beside it.
        checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in self._layers)
        recomputed = nullcontext() if checkpointing else self._recomputing()
        with packed, self._prepacked(), self._fused(), recomputed:
            yield

    @contextmanager
    def sharing_if(self, allowed: bool) -> Iterator[None]:
        """While it lasts, a beginning stands in a micro-batch once if that is allowed and can be."""
        before, self.sharing = self.sharing, allowed and self.can_share
        try:
            yield
        finally:
            self.sharing = before

    def tensors(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        """Inputs and labels of one micro-batch."""
        return self.joint_tensors([examples], [self.sharing])

    def joint_tensors(self, groups: Sequence[Sequence[Encoded]], sharing: Sequence[bool]) -> dict[str, Any]:
        """Inputs and labels of several micro-batches that go through the model together, one after the other.

        Labels stay on the CPU: to look on a GPU where they are would wait for all that it has to do.

        Args:
            groups: the examples of each.
            sharing: whether the beginning that those of a group share may stand there once.
        """
        examples = [example for group in groups for example in group]
        if not self.packed:
            return self._placed(collate(examples, self.pad_id))
        beginnings: list[int] = []
        for group, shares in zip(groups, sharing, strict=True):
            shared = shared_beginning(group) if shares and self.can_share else 0
            beginnings += [0] + [shared] * (len(group) - 1)
        columns, documents = collate_packed([examples], [beginnings])
        return {
            **self._placed(columns),
            "documents": Unguarded(documents),
            "beginnings": Unguarded([beginnings]),
        }

    def _placed(self, columns: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        return {name: column if name == "labels" else sent(column, self.device) for name, column in columns.items()}

    def pieces(self, lengths: Sequence[int], size: int) -> list[list[int]]:
        """Indices of all examples in micro-batches of at most ``size``.

        Padded ones hold examples of like length; packed ones hold like numbers of tokens, so that the fullest, which
        sets the peak of memory, is as small as it can be.
        """
        if self.packed:
            return balanced(lengths, math.ceil(len(lengths) / size), size)
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return [order[i : i + size] for i in range(0, len(order), size)]


def balanced(lengths: Sequence[int], groups: int, size: int) -> list[list[int]]:
    """Indices of all examples in so many groups of at most ``size``, with like numbers of tokens; some may be empty."""
    found: list[list[int]] = [[] for _ in range(groups)]
    tokens = [0] * groups
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = min((t, i) for i, (t, group) in enumerate(zip(tokens, found, strict=True)) if len(group) < size)[1]
        found[least].append(index)
        tokens[least] += lengths[index]
    return found
