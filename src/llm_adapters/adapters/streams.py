"""Random numbers of one adapter's own: what it drops out does not depend on what is drawn beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Stream:
    """A stream of torch's random numbers.

    Attributes:
        state: of torch's generators by kind of device, as ``get_rng_state`` gives it.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)

    @contextmanager
    def drawing(self, drawn: MutableMapping[object, Mapping[str, Tensor]], who: object) -> Iterator[None]:
        """Within the ``with``, torch draws from this stream; outside of it nothing has been drawn.

        Args:
            drawn: where the stream stood when each one drew. One that runs again – gradient checkpointing computes
                its layers again – draws the same again, and the stream does not go on.
            who: is drawing.
        """
        outside = {kind: _get(kind) for kind in self.state}
        again = drawn.get(who)
        drawn.setdefault(who, self.state)
        _set(self.state if again is None else again)
        try:
            yield
        finally:
            if again is None:
                self.state = {kind: _get(kind) for kind in self.state}
            _set(outside)


def _get(kind: str) -> Tensor:
    return torch.get_rng_state() if kind == "cpu" else torch.get_device_module(kind).get_rng_state()


def _set(state: Mapping[str, Tensor]) -> None:
    for kind, value in state.items():
        if kind == "cpu":
            torch.set_rng_state(value)
        else:
            torch.get_device_module(kind).set_rng_state(value)
