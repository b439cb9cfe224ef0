"""What one micro-batch takes: its bytes and its operations, counted on the meta device without weights or memory.

The real forward and backward passes run over tensors that have shapes and no numbers. Every storage that they make is
entered when it comes and crossed out when it goes, so what autograd saves for the backward pass – of any architecture,
any adapter, with gradient checkpointing or without – is counted and not modelled.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from llm_adapters.data.encoding import Encoded
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss


@dataclass(frozen=True)
class Count:
    """What one micro-batch takes.

    Attributes:
        saved_bytes: held between the forward and the backward pass.
        peak_bytes: the most that is held at one moment, the adapter's gradients included; weights are not.
        operations: floating-point operations of the matrix products; a multiplication and an addition are two.
    """

    saved_bytes: int
    peak_bytes: int
    operations: int


def count(
    model: nn.Module, batches: Batches, piece: Sequence[Encoded], *, accumulating: bool = False, backward: bool = True
) -> Count:
    """Count one micro-batch.

    Args:
        model: on the meta device, with its adapter, in the mode in which it will run.
        batches: how examples go through it, on the CPU.
        piece: the examples of the micro-batch.
        accumulating: gradients of an earlier micro-batch are there already.
        backward: whether there is a backward pass.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tensors = {
        name: value.to("meta") if isinstance(value, Tensor) and name != "labels" else value
        for name, value in batches.tensors(piece).items()
    }
    ledger = Ledger([*model.parameters(), *model.buffers()])
    with ledger, WithoutNumbers(), _fused_attention(ledger), batches.in_force(), torch.set_grad_enabled(backward):
        if accumulating and backward:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        loss = summed_loss(model, tensors, batches.head)
        saved = ledger.now
        if backward:
            loss.backward()
    for parameter in trained:
        parameter.grad = None
    return Count(saved, ledger.peak, ledger.operations)


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages that live, and the operations of matrix products.

    Attributes:
        now, peak: bytes of the storages made since, and the most there were.
        operations: so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """``known`` tensors are there already and are not counted."""
        super().__init__()
        self.now = self.peak = self.operations = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._living: dict[int, int] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """It keeps no results, so what is counted may overwrite tensors as it does without being watched."""
        return True

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__.removesuffix("_")  # in place or not
        formula = flop_registry.get(getattr(torch.ops.aten, name, None))
        if formula is not None:
            self.operations += int(formula(*args, **(kwargs or {}), out_val=out))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._enter(value.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if not size or key in self._known or key in self._living:
            return
        self._living[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._living.pop(key)


@contextmanager
def _fused_attention(ledger: Ledger) -> Iterator[None]:
    """Let scaled dot-product attention save what its fused kernels save; on meta it would hold all its weights.

    In the place of the function itself: no mode is in force when checkpointing computes a layer again.
    """
    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if options.get("dropout_p"):  # no fused kernel of a CPU drops weights: all of them are held
            return before(query, key, value, *args, **options)
        return _Attention.apply(query, key, value, ledger)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


class _Attention(torch.autograd.Function):
    """The shapes of fused attention: saves q, k, v, the output and a number a query and head.

    Two products of (T, P+T, d) forward, and five backward, which computes the weights again (Dao et al. 2022).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, ledger: Ledger) -> Tensor:
        # Head after head in every token, as they write it.
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.product, ctx.ledger = query.numel() * key.shape[-2], ledger
        ledger.operations += 4 * ctx.product
        return out

    @staticmethod
    def backward(ctx: Any, *_outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, _, _ = ctx.saved_tensors
        ctx.ledger.operations += 10 * ctx.product
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
