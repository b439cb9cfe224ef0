"""Gradient checkpointing: a recomputed layer must see the pass it belongs to, not the newest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from llm_adapters.errors import UserError

if TYPE_CHECKING:
    from llm_adapters.adapters.engine import Engine

_FUNCTION = "_gradient_checkpointing_func"


class PassKeeper:
    """A checkpointing function that restores, on recomputation, the pass of the original forward."""

    def __init__(self, engine: Engine, inner: Callable[..., Any]) -> None:
        self.engine, self.inner = engine, inner

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        current = self.engine.current

        def replay(*inner_args: Any, **inner_kwargs: Any) -> Any:
            before, self.engine.current = self.engine.current, current
            try:
                return function(*inner_args, **inner_kwargs)
            finally:
                self.engine.current = before

        return self.inner(replay, *args, **kwargs)


def remember_pass_in_checkpoints(engine: Engine) -> None:
    """Wrap the checkpointing function of every layer that has one switched on."""
    for module in _checkpointed(engine):
        function = getattr(module, _FUNCTION, None)
        if function is None or isinstance(function, PassKeeper):
            continue
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise UserError(
                "gradient checkpointing is on with use_reentrant=True, under which a frozen base passes no gradient",
                mend="model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})",
            )
        setattr(module, _FUNCTION, PassKeeper(engine, function))


def forget_pass_in_checkpoints(engine: Engine) -> None:
    """Put the original checkpointing functions back."""
    for module in (engine.base.sites.decoder, *engine.base.sites.blocks):
        function = getattr(module, _FUNCTION, None)
        if isinstance(function, PassKeeper):
            setattr(module, _FUNCTION, function.inner)


@contextmanager
def without_checkpointing(engine: Engine) -> Iterator[None]:
    """Switch checkpointing off for a short pass whose keys and values are wanted."""
    modules = list(_checkpointed(engine))
    for module in modules:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _checkpointed(engine: Engine) -> Iterator[nn.Module]:
    for module in (engine.base.sites.decoder, *engine.base.sites.blocks):
        if getattr(module, "gradient_checkpointing", False):
            yield module
