"""The layers below the lowest adapter: what they give for an example never changes, so it is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.forms import KeyValues, VirtualTokens
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import TrainingError
from llm_adapters.model.memory import free_bytes, is_out_of_memory
from llm_adapters.model.quantised_linears import quantised_linears
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from llm_adapters.train.randomness import RandomState

_SHARE = 0.5  # of the machine's free memory that the hidden states may take
_EXACT, _ROUNDED = 1e-4, 0.02  # of a loss with them against one without: in float32, and where more is rounded
_MEND = "train.cache_frozen_layers=false (--force, if the run has begun)"


def lowest_layer(adapter: Adapter) -> int:
    """The first layer whose work depends on the adapter; 0 also for what stands before it."""
    found = [len(adapter.base.sites.blocks)]
    for part in adapter.parts():
        if isinstance(part, KeyValues):
            found += part.shapes
        elif isinstance(part, VirtualTokens):
            found.append(0)
    return min(found + [placed.site.layer or 0 for placed in adapter.placed()])


def refuse_nothing_below(adapter: Adapter) -> None:
    """Refuse an adapter below which no layer is.

    Raises:
        TrainingError: so it is.
    """
    if lowest_layer(adapter) == 0:
        raise TrainingError(
            "train.cache_frozen_layers: this adapter stands in layer 0 already, or before it, and nothing is below",
            mend="an adapter in upper layers alone (adapter.layers=last:8), or train.cache_frozen_layers=false",
        )


class FrozenLayers:
    """Hidden states (T, D) of examples before the lowest layer with an adapter, in the machine's memory.

    Those of an example are computed when it is first wanted, by itself, so they are the same bits in whatever order
    examples come and however often a training is interrupted.

    Args:
        model: with the adapter.
        adapter: attached to it.
        batches: how examples go through it.
        examples: all that will be wanted, or more; no two threads ask for them.
        most: tokens that may be wanted in all.

    Raises:
        TrainingError: no layer is below the adapter; the layers draw random numbers, hand on more than hidden states,
            or are another library's; or the states do not fit into memory.
    """

    def __init__(
        self, model: Any, adapter: Adapter, batches: Batches, examples: Sequence[Encoded], *, most: int
    ) -> None:
        refuse_nothing_below(adapter)
        self._model, self._batches, self._device = model, batches, adapter.base.device
        self._below = adapter.base.sites.blocks[: lowest_layer(adapter)]
        if any("forward" in vars(block) for block in self._below):
            raise TrainingError(
                "train.cache_frozen_layers: another library has put its own 'forward' into the layers", mend=_MEND
            )
        needed, free = most * adapter.base.sites.width * adapter.base.dtype.itemsize, free_bytes(torch.device("cpu"))
        if needed > _SHARE * free:
            raise TrainingError(
                f"train.cache_frozen_layers: the hidden states of all examples take {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free, of which half is for them",
                mend=_MEND,
            )
        self._states: dict[int, Tensor] = {}  # by the example's identity: callers keep their examples
        self._beside: int | None = None  # what a layer gives beside hidden states, if it gives a tuple
        self._refuse_draws(examples[0])
        self._try(examples[:2])

    @contextmanager
    def standing_in(self, examples: Sequence[Encoded], mask: Tensor | None) -> Iterator[None]:
        """While it lasts, the states of these examples, in the order of the batch, stand in for the layers below.

        Args:
            examples: of the batch.
            mask: (B, T), 1 at their tokens; None where all tokens are.
        """
        for example in examples:
            if id(example) not in self._states:
                self._states[id(example)] = self._computed(example)
        states = torch.cat([self._states[id(example)] for example in examples])

        def given(hidden: Tensor) -> Any:
            return hidden if self._beside is None else (hidden, *[None] * self._beside)

        def skipped(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return given(hidden_states)

        def known(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            own = states.to(hidden_states.device)
            if mask is None:
                return given(own.view_as(hidden_states))
            filled = torch.zeros_like(hidden_states)
            filled[mask.bool()] = own
            return given(filled)

        for block in self._below:
            vars(block)["forward"] = known if block is self._below[-1] else skipped
        try:
            yield
        finally:
            for block in self._below:
                del vars(block)["forward"]

    @torch.no_grad()
    def _computed(self, example: Encoded) -> Tensor:
        """The states of one example; the layers above are not run."""
        found: list[Tensor] = []

        def reached(_module: Any, _args: Any, output: Any) -> None:
            self._beside = len(output) - 1 if isinstance(output, tuple) else None
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self._below[-1].register_forward_hook(reached)
        try:
            with suppress(_Reached), self._batches.in_force():
                summed_loss(self._model, self._batches.tensors([example]))
        finally:
            handle.remove()
        return found[0].flatten(0, -2).to("cpu", copy=True)

    def _refuse_draws(self, example: Encoded) -> None:
        before = RandomState.take(self._device)
        self._computed(example)
        after = RandomState.take(self._device)
        before.restore()
        if any(not torch.equal(before.tensors[kind], after.tensors[kind]) for kind in before.tensors):
            raise TrainingError(
                "train.cache_frozen_layers: the layers below the adapter have dropout, so they never give the same "
                "twice",
                mend=_MEND,
            )

    @torch.no_grad()
    def _try(self, examples: Sequence[Encoded]) -> None:
        """Layers may hand on more than hidden states; then a loss without those below is another."""
        tensors = self._batches.tensors(examples)
        was_training, quantised = self._model.training, quantised_linears(self._model)
        self._model.eval()  # so that the adapter draws nothing
        for module in quantised:  # as they train: bitsandbytes evaluates in 8 bits
            module.train()
        try:
            with self._batches.in_force():
                expected = float(summed_loss(self._model, tensors, self._batches.head))
            with self.standing_in(examples, tensors.get("attention_mask")), self._batches.in_force():
                found = float(summed_loss(self._model, tensors, self._batches.head))
        except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as failure:
            if is_out_of_memory(failure):
                raise
            raise self._refused(f"({failure})") from failure
        finally:
            self._model.train(was_training)
        exact = self._model.dtype == torch.float32 and not quantised
        if not abs(found - expected) <= (_EXACT if exact else _ROUNDED) * abs(expected):
            raise self._refused(f"(a loss of {found:g} instead of {expected:g})")

    def _refused(self, what: str) -> TrainingError:
        return TrainingError(
            f"train.cache_frozen_layers: the layers of this model hand on more than hidden states {what}", mend=_MEND
        )


class _Reached(Exception):  # noqa: N818 – nothing went wrong
    """The layer behind which the states are wanted."""
