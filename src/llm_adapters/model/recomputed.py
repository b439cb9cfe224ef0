"""States that the backward pass computes again from what is held anyway, instead of keeping them for it.

A normed state costs one pass over the residual stream, a gated product one over gate and up, attention joined from its
documents a copy, dropout its random numbers; adapters that read them would keep each for every token and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_NAME = "_llm_adapters_recomputed"
_on: ContextVar[bool] = ContextVar("_on", default=False)


class Recomputed:
    """One tensor that several may save: computed again for the first who reads it, and held until the last has.

    What it is computed from may be such a tensor too.
    """

    def __init__(self, function: Callable[..., Tensor], given: tuple[Any, ...], out: Tensor) -> None:
        self._function, self._version = function, out._version
        self._given = [_pack(each) if isinstance(each, Tensor) else (each, None) for each in given]
        self._readers = 0
        self._found: Tensor | None = None

    def stands_for(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, which was computed so, is as it was then."""
        return tensor._version == self._version

    def saved(self) -> None:
        """One more will read it."""
        self._readers += 1

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: what it is computed from was overwritten.
        """
        found = self._found
        if found is None:
            with torch.no_grad():
                found = self._function(*map(_unpack, self._given))
        self._readers -= 1
        self._found = found if self._readers > 0 else None
        return found


def recomputed(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """``function(*given)``, which within :func:`recomputing` neither :func:`saving` nor :func:`kept` keeps.

    Args:
        function: gives the same numbers each time.
        given: what it takes, and holds for its own backward pass anyway.
    """
    out = function(*given)
    if torch.compiler.is_compiling():  # which cannot look at a context, and decides by itself what it computes again
        return out
    if _on.get() and torch.is_grad_enabled():
        setattr(out, _NAME, Recomputed(function, given, out))
    return out


@contextmanager
def recomputing() -> Iterator[None]:
    """While it lasts, what is saved in :func:`saving`, or asked for by :func:`kept`, is computed again if it can be.

    Nothing is said of what others save: to look at every tensor that a pass over a large model saves would take a GPU's
    host a tenth of its time.
    """
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def saving() -> AbstractContextManager[Any]:
    """While it lasts, within :func:`recomputing`, autograd saves how a tensor is computed again instead of it."""
    if torch.compiler.is_compiling() or not _on.get():
        return nullcontext()
    return saved_tensors_hooks(_pack, _unpack)


def kept(tensor: Tensor) -> Callable[[], Tensor] | None:
    """For the context of a function, to be called once: what gives ``tensor``; None if it has to be saved."""
    found = _found(tensor) if _on.get() else None
    if found is None:
        return None
    found.saved()
    return partial(_unpack, (found, tensor.shape))


def _found(tensor: Tensor) -> Recomputed | None:
    """How ``tensor`` is computed again, if it can be."""
    whole = tensor._base if tensor._base is not None else tensor
    found: Recomputed | None = getattr(whole, _NAME, None)
    return found if found is not None and found.stands_for(whole) and _as_stored(tensor, whole) else None


def _pack(tensor: Tensor) -> tuple[Any, Any]:
    """The tensor and its version, or how it is computed again and its shape."""
    found = _found(tensor)
    if found is None:
        # Detached, or what a node saves of its own output would hold the node for ever.
        return tensor.detach(), tensor._version
    found.saved()
    return found, tensor.shape


def _as_stored(tensor: Tensor, whole: Tensor) -> bool:
    """Whether ``tensor`` is all of ``whole``, place by place in the same order."""
    same = tensor.numel() == whole.numel() and tensor.dtype == whole.dtype
    return same and tensor.is_contiguous() and whole.is_contiguous()


def _unpack(packed: tuple[Any, Any]) -> Any:
    found, told = packed
    if isinstance(found, Recomputed):
        return found.read().view(told)
    if isinstance(found, Tensor) and found._version != told:  # with hooks, autograd does not look
        raise RuntimeError("a tensor that the backward pass needs was overwritten after the forward pass saved it")
    return found
