"""A training without weights: its model on the meta device, its real micro-batches, what they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm_adapters.adapters.attach import attached
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.encoding import Encoded
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.model import dtype_on, empty_model, load_tokenizer
from llm_adapters.model.prepacked import bytes_to_train
from llm_adapters.model.quantised_linears import bytes_as
from llm_adapters.model.quantization import KINDS, stored_quantization
from llm_adapters.model.sites import find_sites
from llm_adapters.runs.training_data import TrainingData
from llm_adapters.train.batches import Batches
from llm_adapters.train.beginnings import shares_beginnings
from llm_adapters.train.counting import count
from llm_adapters.train.loss import labelled_tokens
from llm_adapters.train.memory import compute_activations_again
from llm_adapters.train.operations import Operations
from llm_adapters.train.sharding import refuse_quantised
from llm_adapters.train.workload import Extent, Workload

_MOMENTS = 2  # of AdamW, each as large as the adapter


@dataclass(frozen=True)
class TrainingShape:
    """The base and the data of a training; adapters come and go.

    Attributes:
        config: of the run.
        device, dtype: of the base.
        model: on the meta device, in training mode.
        parameters: of the base.
        base_bytes: of its weights and buffers as they will be held, quantised or not.
        dequantised: bytes of the largest weight when a quantised base computes with it; 0 for others.
        in_nf4: what ``base_bytes`` and ``dequantised`` would be together with ``bnb-nf4``.
        batches: how examples go through the model.
        examples, judges: what is trained on and validated on, with at least one label each.
        size: rows of a micro-batch.
        work: the micro-batches.
        processes: that share every batch.
        sharded: whether they share the base too.
        gathered: bytes of weights that each would hold beside its share then.
    """

    config: RunConfig
    device: torch.device
    dtype: torch.dtype
    model: Any
    tokenizer: Any
    parameters: int
    base_bytes: int
    dequantised: int
    in_nf4: int
    batches: Batches
    examples: Sequence[Encoded]
    judges: Sequence[Encoded]
    size: int
    work: Workload
    processes: int
    sharded: bool
    gathered: int

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        dtype: torch.dtype | None = None,
        as_written: bool = False,
        processes: int = 1,
        note: Callable[[str], None] = lambda _text: None,
    ) -> TrainingShape:
        """Read the data, make the empty model, and order the micro-batches as the run will.

        Args:
            config: of the run; its adapter is not attached.
            dtype: what ``auto`` is, for a device that is not here.
            as_written: the model computes as it is written, without what is fused on this machine's CPU.
            processes: that share every batch, and with ``distributed: fsdp`` the base.
            note: told of what takes a moment.

        Raises:
            UserError: whatever is wrong with the model's or the data's section.
        """
        source, settings = config.model, config.train
        template, data = get_template(config.data.template), TrainingData.of(config.data, config.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        elsewhere = dtype is not None
        if dtype is None or source.dtype != "auto":
            dtype = dtype_on(source.dtype, device)
        model: Any = empty_model(source.source, dtype=dtype, trust_remote_code=source.trust_remote_code)
        kind = source.quantization if source.quantization in KINDS else stored_quantization(model.config)
        sharded = settings.distributed == "fsdp" and processes > 1
        if sharded:
            refuse_quantised(kind)
        held, dequantised = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]), 0
        if kind in KINDS:
            held, dequantised = bytes_as(model, kind)
        tokenizer = load_tokenizer(source.source, trust_remote_code=source.trust_remote_code)
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
            compute_activations_again(model)
        model.train()
        batches = Batches(
            model, pad_id=0, device=torch.device("cpu"), packed=settings.packing,
            fused=not (settings.compiles or as_written or sharded),
            recompute=not (settings.compiles or as_written or sharded), apart=not sharded,
            on_cpu=not elsewhere and device.type == "cpu",
        )  # fmt: skip
        size = min(settings.micro_batch or settings.batch_size, math.ceil(settings.batch_size / processes))
        return cls(
            config, device, dtype, model, tokenizer, sum(parameter.numel() for parameter in model.parameters()), held,
            dequantised, sum(bytes_as(model, "bnb-nf4")), batches, encoded, judges, size,
            Workload.of(encoded, settings, batches, seed=config.seed, size=size, processes=processes),
            processes, sharded, _gathered(model),
        )  # fmt: skip

    def settle_sharing(self) -> None:
        """Settle, by what is attached to ``model``, whether beginnings stand in a micro-batch once."""
        acting = attached(self.model).values()
        self.batches.sharing = self.batches.can_share and shares_beginnings(self.config.train, acting)

    def with_rows(self, size: int) -> TrainingShape:
        """The same training with micro-batches of another size."""
        work = Workload.of(
            self.examples, self.config.train, self.batches, seed=self.config.seed, size=size, processes=self.processes
        )
        return replace(self, size=size, work=work)

    @property
    def weights(self) -> dict[str, int]:
        """Bytes of the base in each process."""
        if not self.sharded:
            return {"base weights": self.base_bytes}
        return {
            f"base weights, one share of {self.processes}": self.base_bytes // self.processes,
            "base weights, gathered to compute with": self.gathered,
        }

    def memory(self, adapter: Any) -> dict[str, int]:
        """Bytes by what holds them at the fullest micro-batch: by its tokens, what its attention takes, or its logits.

        Args:
            adapter: attached to ``model``.
        """
        pieces = list(zip(self.extents, self.work.pieces, strict=True))
        orders: tuple[Callable[[Extent], tuple[int, int]], ...] = (
            lambda extent: (extent.tokens, extent.logits),
            lambda extent: (extent.squares, extent.tokens),
            lambda extent: (extent.logits, extent.tokens),
        )
        fullest = {
            id(piece): piece
            for _, piece in (max(pieces, key=lambda pair, order=order: order(pair[0])) for order in orders)  # type: ignore[misc]
        }
        found = [
            count(self.model, self.batches, piece, accumulating=self.work.accumulating) for piece in fullest.values()
        ]
        most = max(found, key=lambda each: each.peak_bytes)
        parts = {
            **self.weights,
            "adapter, AdamW's moments": (1 + _MOMENTS) * sum(each.nbytes for each in adapter.parameters()),
            "gradients, saved activations": most.saved_bytes,
            "backward pass, logits": most.peak_bytes - most.saved_bytes,
        }
        return parts | ({"the largest weight, dequantised": self.dequantised} if self.dequantised else {})

    def copies(self, adapter: Any) -> dict[str, int]:
        """Bytes that a training on this machine's CPU holds for speed; what they are depends on how much there is.

        Args:
            adapter: attached to ``model``.
        """
        settings = self.config.train
        found = {}
        if self.prepacked:
            found["base weights, in the layout of the kernels"] = self.prepacked
        if settings.cache_frozen_layers:
            lengths = sorted((len(example.input_ids) for example in self.examples), reverse=True)
            read = sum(lengths[: self.work.steps * settings.batch_size])
            found["hidden states below the adapter"] = read * adapter.base.sites.width * self.dtype.itemsize
        return found

    @property
    def prepacked(self) -> int:
        """Bytes of weights that a training on a CPU copies into the layout of its kernels; 0 if it does not."""
        return self.prepacked_if(quantised=self.dequantised > 0)

    def prepacked_if(self, *, quantised: bool) -> int:
        """Those bytes over a base that is quantised, or over this one as it is."""
        plain = self.model.get_output_embeddings() if quantised else self.model  # what no quantization replaces
        return 0 if self.config.train.compiles else bytes_to_train(plain)

    def operations(self) -> float:
        """Floating-point operations of all training steps, forward and backward, with what is attached."""
        operations = Operations.of(self.model, self.batches)
        return operations.of_layers(self.extents) + operations.of_logits(self.extents)

    @property
    def extents(self) -> list[Extent]:
        """How large each micro-batch is."""
        return self.work.extents(self.batches)

    @property
    def judged(self) -> list[Extent]:
        """How large each micro-batch of all validations is."""
        if not self.judges:
            return []
        settings = self.config.train
        every = settings.validate_every or -(-len(self.examples) // settings.batch_size)
        once = settings.model_copy(update={"epochs": 1.0, "steps": None})
        work = Workload.of(
            self.judges, once, self.batches, seed=self.config.seed, size=self.size, processes=self.processes
        )
        return work.extents(self.batches) * -(-self.work.steps // every)


def _gathered(model: Any) -> int:
    """Bytes of what is whole at once of a sharded base: two blocks, one on its way, and all that is in no block."""
    weights = {id(each): each.nbytes for each in [*model.parameters(), *model.buffers()]}
    blocks = [sum(weights.pop(id(each), 0) for each in block.parameters()) for block in find_sites(model).blocks]
    return sum(weights.values()) + sum(sorted(blocks)[-2:])
