"""Merging linear adapters into the base's weights, and taking them out again exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import engine_of
from llm_adapters.adapters.method import Placed, SiteForms
from llm_adapters.errors import AdapterError
from llm_adapters.model.quantised_linears import is_quantised


def merge(model: nn.Module, name: str) -> None:
    """Add an adapter's linear maps to the base's weights: no cost at inference any more.

    The original weights are kept in main memory, so that :func:`unmerge` restores them bit for bit.

    Raises:
        AdapterError: the adapter is not linear, its base is quantised, or it is merged already.
    """
    engine = engine_of(model)
    adapter = engine.adapters.get(name)
    if adapter is None:
        raise AdapterError(f"no adapter '{name}' is attached", given=name, allowed=engine.adapters)
    if name in engine.merged:
        raise AdapterError(f"adapter '{name}' is merged already", mend=f"unmerge(model, '{name}')")
    if name not in engine.enabled:
        raise AdapterError(f"adapter '{name}' is disabled", mend=f"enable(model, '{name}') first")
    for stack in engine.routed_stacks():
        if name not in stack:
            raise AdapterError(
                f"the route in force sends rows round '{name}', which a merged adapter does not allow",
                mend="merge outside of `with route(...)`",
            )
    updates: list[tuple[Placed, Tensor]] = [(placed, _delta(adapter, placed)) for placed in _mergeable(adapter)]
    # The original weights are safe before the first is changed: whatever fails after that can be undone.
    engine.merged[name] = [(placed.site.output, _weight(placed).detach().to("cpu", copy=True)) for placed, _ in updates]
    try:
        with torch.no_grad():
            for placed, delta in updates:
                weight = _weight(placed)
                aligned = delta.t() if type(placed.site.output).__name__ == "Conv1D" else delta
                # Summed in the adapter's precision and rounded once.
                weight.copy_((weight.to(delta.dtype) + aligned).to(weight.dtype))
    except BaseException:
        unmerge(model, name)
        raise


def _weight(placed: Placed) -> Tensor:
    weight = placed.site.output.weight
    assert isinstance(weight, Tensor)
    return weight


def unmerge(model: nn.Module, name: str) -> None:
    """Restore the weights that :func:`merge` changed, bit for bit; the adapter acts through its hooks again.

    Raises:
        AdapterError: the adapter is not merged, or another was merged after it into the same weights.
    """
    engine = engine_of(model)
    if name not in engine.merged:
        raise AdapterError(f"adapter '{name}' is not merged", given=name, allowed=engine.merged)
    later = list(engine.merged)[list(engine.merged).index(name) + 1 :]
    mine = {id(module) for module, _ in engine.merged[name]}
    above = [other for other in later if any(id(module) in mine for module, _ in engine.merged[other])]
    if above:
        raise AdapterError(f"'{above[-1]}' was merged after '{name}'", mend=f"unmerge(model, '{above[-1]}') first")
    with torch.no_grad():
        for module, weight in reversed(engine.merged.pop(name)):
            module.weight.copy_(weight)


def _mergeable(adapter: Adapter) -> list[Placed]:
    for method, part in zip(adapter.methods, adapter.parts(), strict=True):
        linear = isinstance(part, SiteForms) and all(
            item.insertion == "parallel" and item.site.is_linear and item.form.delta_weight() is not None
            for item in part.placed
        )
        if not linear:
            raise AdapterError(
                f"adapter '{adapter.name}' cannot be merged: '{method.name()}' is not a linear map beside linears",
                mend="merge works for lora; serve other methods attached",
            )
    return list(adapter.placed())


def _delta(adapter: Adapter, placed: Placed) -> Tensor:
    delta = placed.form.delta_weight()
    assert delta is not None
    if is_quantised(placed.site.output):
        raise AdapterError(
            f"adapter '{adapter.name}' cannot be merged into '{placed.site.path}': its weight is quantised",
            mend="save the adapter, load the base unquantised, attach it there and merge",
        )
    return delta.detach()
