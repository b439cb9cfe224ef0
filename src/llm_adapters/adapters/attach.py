"""The operations on a model and its adapters: attach, detach, enable, disable, rename, route."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.checkpointing import forget_pass_in_checkpoints
from llm_adapters.adapters.engine import Engine
from llm_adapters.adapters.method import Method
from llm_adapters.adapters.method import methods as known_methods
from llm_adapters.adapters.routing import RowRoute, read_route, read_spans
from llm_adapters.errors import AdapterError, RouteError
from llm_adapters.model.sites import find_sites

STORE = "llm_adapters"
"""Name of the submodule that holds an attached model's adapters; base parameters keep their own names."""


class Store(nn.ModuleDict):
    """The adapters of a model, registered so that optimisers, ``to`` and distributed wrappers find them."""

    def __init__(self, engine: Engine, trainable: Mapping[str, bool]) -> None:
        super().__init__()
        self.engine = engine
        self.trainable_before = dict(trainable)


def attach(
    model: nn.Module,
    method: Method | Sequence[Method] | str | Path,
    name: str = "default",
    *,
    tokenizer: Any = None,
    allow_other_base: bool = False,
) -> Adapter:
    """Attach a new adapter, or one saved in a folder, to a decoder language model.

    The first attachment freezes the base: its parameters stop requiring gradients until the last is detached.

    Args:
        model: a transformers causal language model (or its decoder), on any device, in any dtype.
        method: a method, a list of methods that are trained and saved as one adapter, or the folder of a saved one.
        name: the adapter's name on this model.
        tokenizer: needed only to initialise virtual tokens from text.
        allow_other_base: load an adapter that was trained on other weights of the same shape.

    Returns:
        the adapter; its ``parameters()`` are what is trained.

    Raises:
        AdapterError: the name is taken or malformed, the file is damaged, or the base is another one.
        SiteError, MethodError: the method does not fit the model.
    """
    engine = _engine(model)
    new = engine is None
    if engine is None:
        engine = Engine(Base(_plain(model), find_sites(_plain(model)), tokenizer))
        engine.quantised.prepare()
    try:
        _check_name(name, engine)
        base = engine.base if tokenizer is None else Base(engine.base.model, engine.base.sites, tokenizer)
        with engine.suspended():
            adapter = _make(method, name, base, allow_other_base=allow_other_base)
    except BaseException:
        if new:
            engine.quantised.restore()
        raise
    if new:
        frozen = {key: parameter.requires_grad for key, parameter in _plain(model).named_parameters()}
        _plain(model).requires_grad_(False)
        _plain(model).add_module(STORE, Store(engine, frozen))
    adapter.train(_plain(model).training)
    _store(model).add_module(name, adapter)
    engine.adapters[name] = adapter
    engine.enabled[name] = None
    try:
        engine.rebuild()
    except BaseException:
        detach(model, name)
        raise
    return adapter


def _make(method: Method | Sequence[Method] | str | Path, name: str, base: Base, *, allow_other_base: bool) -> Adapter:
    if isinstance(method, str | Path):
        from llm_adapters.adapters.store import load

        folder = Path(method).expanduser()
        if str(method) in known_methods() and not folder.exists():
            raise AdapterError(
                f"'{method}' is read as the folder of a saved adapter, and there is none",
                mend=f'attach(model, la.method("{method}"), name="{name}") makes a new one',
            )
        return load(folder, name, base, allow_other_base=allow_other_base)
    methods = [method] if isinstance(method, Method) else list(method)
    if not methods or not all(isinstance(item, Method) for item in methods):
        raise AdapterError(
            f"attach takes a method, a list of methods or a folder, not {method!r}",
            mend='attach(model, la.method("lora", rank=8), name="math")',
        )
    adapter = Adapter.build(name, methods, base)
    if base.dtype in (torch.float64, torch.float32):
        adapter.to(base.dtype)
    return adapter


def detach(model: nn.Module, name: str | None = None, *, keep_merged: bool = False) -> None:
    """Remove one adapter, or all with ``name`` None. After the last, the model is bit for bit what it was.

    ``keep_merged`` leaves merged weights merged: what remains is an ordinary checkpoint to save.

    Raises:
        AdapterError: there is no such adapter.
    """
    from llm_adapters.adapters.merge import unmerge

    engine = engine_of(model)
    leaving = list(engine.adapters) if name is None else [_known(engine, name)]
    for gone in leaving:
        _refuse_routed(engine, gone)
    for gone in [merged for merged in reversed(engine.merged) if merged in leaving]:
        if keep_merged:
            del engine.merged[gone]
        else:
            unmerge(model, gone)
    for gone in leaving:
        del engine.adapters[gone]
        engine.enabled.pop(gone, None)
        del _store(model)._modules[gone]
    engine.rebuild()
    if not engine.adapters:
        forget_pass_in_checkpoints(engine)
        engine.quantised.restore()
        plain, before = _plain(model), _store(model).trainable_before
        del plain._modules[STORE]
        for key, parameter in plain.named_parameters():
            parameter.requires_grad_(before.get(key, True))


def attached(model: nn.Module) -> Mapping[str, Adapter]:
    """The adapters attached to ``model`` by name; empty when there are none."""
    engine = _engine(model)
    return {} if engine is None else dict(engine.adapters)


def enable(model: nn.Module, *names: str) -> None:
    """Let adapters act where no route is given; without names, all of them."""
    engine = engine_of(model)
    wanted = {_known(engine, name) for name in names or engine.adapters}.union(engine.enabled)
    engine.enabled = {name: None for name in engine.adapters if name in wanted}  # in the order of attaching


def disable(model: nn.Module, *names: str) -> None:
    """Let adapters rest where no route is given; without names, all of them."""
    engine = engine_of(model)
    resting = [_known(engine, name) for name in names or engine.adapters]
    for name in resting:
        if name in engine.merged:
            raise AdapterError(f"adapter '{name}' is merged into the base", mend=f"unmerge(model, '{name}') first")
    for name in resting:
        engine.enabled.pop(name, None)


def rename(model: nn.Module, old: str, new: str) -> None:
    """Give an adapter another name; its place and parameters stay."""
    engine = engine_of(model)
    _known(engine, old)
    if new == old:
        return
    _check_name(new, engine)
    _refuse_routed(engine, old)
    store = _store(model)

    def renamed(name: str) -> str:
        return new if name == old else name

    engine.adapters = {renamed(name): adapter for name, adapter in engine.adapters.items()}
    engine.enabled = {renamed(name): None for name in engine.enabled}
    engine.merged = {renamed(name): kept for name, kept in engine.merged.items()}
    store._modules = {renamed(name): module for name, module in store._modules.items()}
    engine.adapters[new].name = new
    engine.rebuild()


@contextmanager
def route(
    model: nn.Module,
    rows: RowRoute | Sequence[RowRoute],
    *,
    expand: int = 1,
    tokens: Sequence[int] | None = None,
) -> Iterator[None]:
    """Within the ``with``, send each row of a batch through its own adapter.

    Args:
        model: a model with adapters.
        rows: one entry a row – a name, None for the bare base, or a list of names for several at once – or a
            single name or None for all rows.
        expand: rows of the batch that each entry stands for: the beams or samples a prompt in ``generate``.
        tokens: for the one row of a packed batch (:mod:`llm_adapters.model.packing`), the number of tokens that each
            entry stands for; documents must not straddle entries.

    Raises:
        RouteError: an adapter is not attached, or (in the forward pass) the number of rows does not fit.
    """
    engine, before = engine_of(model), engine_of(model).route
    known = list(engine.adapters)
    if tokens is None:
        engine.route = read_route(rows, known, expand)
    else:
        engine.route = read_spans([rows] if rows is None or isinstance(rows, str) else rows, tokens, known)
    try:
        for name in engine.merged:
            if any(name not in stack for stack in engine.routed_stacks()):
                raise AdapterError(
                    f"adapter '{name}' is merged into the base, so no row can go round it",
                    mend=f"unmerge(model, '{name}') first",
                )
        yield
    finally:
        engine.route = before


def engine_of(model: nn.Module) -> Engine:
    """The engine of an attached model.

    Raises:
        AdapterError: nothing is attached.
    """
    engine = _engine(model)
    if engine is None:
        raise AdapterError("no adapter is attached to this model", mend='attach(model, la.method("lora"))')
    return engine


def _plain(model: nn.Module) -> nn.Module:
    """The model itself behind ``torch.compile`` or a data-parallel wrapper."""
    if isinstance(model, nn.DataParallel | DistributedDataParallel):
        return _plain(model.module)
    inner = model._modules.get("_orig_mod")
    return model if inner is None else _plain(inner)


def _store(model: nn.Module) -> Store:
    store = _plain(model)._modules[STORE]
    assert isinstance(store, Store)
    return store


def _engine(model: nn.Module) -> Engine | None:
    return _store(model).engine if STORE in _plain(model)._modules else None


def _known(engine: Engine, name: str) -> str:
    if name not in engine.adapters:
        raise AdapterError(f"no adapter '{name}' is attached", given=name, allowed=engine.adapters)
    return name


def _refuse_routed(engine: Engine, name: str) -> None:
    if any(name in stack for stack in engine.routed_stacks()):
        raise RouteError(f"adapter '{name}' is in the route in force", mend="leave the 'with route(...)' first")


def _check_name(name: str, engine: Engine) -> None:
    taken = {*dir(nn.ModuleDict()), "engine", "trainable_before"}  # attributes of the store itself
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in taken:
        raise AdapterError(
            f"'{name}' cannot be an adapter's name",
            mend="letters, digits, '-' and '_', starting with a letter or digit, and no name of a Python method",
        )
    if name in engine.adapters:
        raise AdapterError(
            f"an adapter '{name}' is attached already", mend=f"another name, or detach(model, '{name}') first"
        )
