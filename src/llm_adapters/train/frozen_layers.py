"""The layers below the lowest adapter: what they give for an example never changes, so it is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.forms import KeyValues, VirtualTokens
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import TrainingError
from llm_adapters.model.memory import free_bytes
from llm_adapters.model.sites import SiteMap
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from llm_adapters.train.together import draws_of_its_own

_SHARE = 0.5  # of the machine's free memory that the hidden states may take
_TOLERANCE = {torch.float32: 1e-4}  # of a loss with them against one without; half precision rounds more
_HALF = 2e-2
_MEND = "train.cache_frozen_layers=false"


def lowest_layer(adapter: Adapter) -> int:
    """The first layer whose work depends on the adapter."""
    found = [len(adapter.base.sites.blocks)]
    for part in adapter.parts():
        if isinstance(part, KeyValues):
            found += part.shapes
        elif isinstance(part, VirtualTokens):
            found.append(0)
    return min(found + [placed.site.layer or 0 for placed in adapter.placed()])


def states_bytes(examples: Sequence[Encoded], sites: SiteMap, dtype: torch.dtype) -> int:
    """Bytes of the hidden states of all examples before one layer."""
    return sum(len(example.input_ids) for example in examples) * sites.width * dtype.itemsize


class FrozenLayers:
    """Hidden states (T, D) of every example before the lowest layer with an adapter, in the machine's memory.

    They are computed from each example by itself, so they are the same bits however a training is interrupted.

    Args:
        model: with the adapter, in training mode.
        adapter: attached to it.
        batches: how examples go through it.
        examples: by number.
        note: told what was done.

    Raises:
        TrainingError: no layer is below the adapter, the base draws random numbers, the states do not fit into memory,
            or a loss with them is another.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        batches: Batches,
        examples: Mapping[int, Encoded],
        note: Callable[[str], None],
    ) -> None:
        self._first = lowest_layer(adapter)
        sites = adapter.base.sites
        if self._first == 0:
            raise TrainingError(
                "train.cache_frozen_layers: this adapter stands in layer 0 already, or before it, and nothing is below",
                mend=f"adapter.layers=last:{max(1, len(sites.blocks) // 2)}, or {_MEND}",
            )
        if draws_of_its_own(model):
            raise TrainingError(
                "train.cache_frozen_layers: the base itself has dropout, so its layers never give the same twice",
                mend=_MEND,
            )
        self._below = sites.blocks[: self._first]
        needed = states_bytes(list(examples.values()), sites, adapter.base.dtype)
        free = free_bytes(torch.device("cpu"))
        if needed > _SHARE * free:
            raise TrainingError(
                f"train.cache_frozen_layers: the hidden states of all examples take {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free, of which half is for them",
                mend=_MEND,
            )
        self._others: int | None = None  # what a layer gives beside hidden states, if it gives a tuple
        self._states = {number: self._computed(model, batches, example) for number, example in examples.items()}
        self._try(model, batches, examples)
        note(
            f"layers 0 to {self._first - 1} have no adapter: computed once for all {len(examples)} examples "
            f"({needed / 1e6:.0f} MB)"
        )

    @contextmanager
    def standing_in(self, numbers: Sequence[int], mask: Tensor | None) -> Iterator[None]:
        """While it lasts, the states of these examples, in the order of the batch, stand in for the layers below.

        Args:
            numbers: of the examples.
            mask: (B, T), 1 at their tokens; None where all tokens are.
        """
        states = torch.cat([self._states[number] for number in numbers])

        def as_given(hidden: Tensor) -> Any:
            return (hidden, *[None] * self._others) if self._others is not None else hidden

        def skipped(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return as_given(hidden_states)

        def known(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            own = states.to(hidden_states.device)
            if mask is None:
                return as_given(own.view_as(hidden_states))
            filled = torch.zeros_like(hidden_states)
            filled[mask.bool()] = own
            return as_given(filled)

        for block in self._below:
            vars(block)["forward"] = known if block is self._below[-1] else skipped
        try:
            yield
        finally:
            for block in self._below:
                del vars(block)["forward"]

    @torch.no_grad()
    def _computed(self, model: Any, batches: Batches, example: Encoded) -> Tensor:
        """The states of one example; the layers above are not run."""
        found: list[Tensor] = []

        def reached(_module: Any, _args: Any, output: Any) -> None:
            self._others = len(output) - 1 if isinstance(output, tuple) else None
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self._below[-1].register_forward_hook(reached)
        try:
            with suppress(_Reached), batches.in_force():
                summed_loss(model, batches.tensors([example]))
        finally:
            handle.remove()
        return found[0].view(-1, found[0].shape[-1]).to("cpu", copy=True)

    @torch.no_grad()
    def _try(self, model: Any, batches: Batches, examples: Mapping[int, Encoded]) -> None:
        """Layers may hand on more than hidden states; then a loss without those below is another."""
        numbers = list(examples)[:2]
        tensors = batches.tensors([examples[number] for number in numbers])
        was_training = model.training
        model.eval()  # so that the adapter draws nothing
        try:
            with batches.in_force():
                expected = float(summed_loss(model, tensors))
                try:
                    with self.standing_in(numbers, tensors.get("attention_mask")):
                        found = float(summed_loss(model, tensors))
                except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as failure:
                    raise self._refused(f"({failure})") from failure
        finally:
            model.train(was_training)
        if not abs(found - expected) <= _TOLERANCE.get(model.dtype, _HALF) * abs(expected):
            raise self._refused(f"(a loss of {found:g} instead of {expected:g})")

    def _refused(self, what: str) -> TrainingError:
        return TrainingError(
            f"train.cache_frozen_layers: the layers of this model hand on more than hidden states {what}", mend=_MEND
        )


class _Reached(Exception):  # noqa: N818 – nothing went wrong
    """The layer behind which the states are wanted."""
