"""Sharding the frozen base over the processes (FSDP2); adapters stay whole on each of them.

One process reads the base into the memory of its machine, the others only its structure. Block by block the weights go
to the devices of all, and all but each one's share of them is given back at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import STORE
from llm_adapters.adapters.fingerprint import fingerprint, keep_fingerprint
from llm_adapters.adapters.forms import VirtualTokens
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import ModelError
from llm_adapters.model.loading import dtype_on
from llm_adapters.train.team import Team


def is_sharded(settings: TrainSection, team: Team) -> bool:
    """Whether the base is sharded; one process alone has nothing to share."""
    return settings.distributed == "fsdp" and team.size > 1


def refuse_quantised(quantization: str | None) -> None:
    """Refuse to shard a base whose weights are packed: there is no telling what a share of them means.

    Raises:
        ModelError: ``quantization`` is the kind of one.
    """
    if quantization is not None:
        raise ModelError(
            f"train.distributed=fsdp cannot shard a base that is quantised ({quantization})",
            mend="train.distributed=ddp, which gives each process the whole of it; or an unquantised base",
        )


def placement(settings: TrainSection, dtype: str) -> dict[str, Any]:
    """Where a base is loaded that :func:`shard` will take, as options of ``load_model``; with the others none."""
    team = Team.join()
    if not is_sharded(settings, team):
        return {"dtype": dtype}
    return {"dtype": dtype_on(dtype, team.device()), "device": "cpu" if team.leads else "meta"}


def shard(model: nn.Module, adapter: Adapter, team: Team) -> None:
    """Shard the base in place, every block and the rest for itself, with the weights of the leader.

    Args:
        model: whole on the leader, on any device; elsewhere its weights do not matter and may be on ``meta``.
        adapter: attached to it; it moves to the device of this process, with the leader's parameters.
        team: more than one process.

    Raises:
        ModelError: the base is quantised.
    """
    refuse_quantised(adapter.base.quantization)
    base, device = adapter.base, team.device()
    keep_fingerprint(base, team.from_leader(lambda: fingerprint(base)))
    mesh = init_device_mesh(device.type, (team.size,))
    store = model.get_submodule(STORE)
    _bring(store, device, team)
    ignored = set(store.parameters())
    for block in base.sites.blocks:
        _bring(block, device, team)
        fully_shard(block, mesh=mesh, ignored_params=ignored)
    _bring(model, device, team, but={store, *base.sites.blocks})
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    last = base.sites.blocks[-1]
    if any(isinstance(part, VirtualTokens) for part in adapter.parts()) and isinstance(last, FSDPModule):
        # What later tokens see of virtual tokens are keys and values alone: nothing uses what the last block gives out
        # for them, so no backward pass through its output would call its weights back.
        last.set_reshard_after_forward(False)
        last.set_reshard_after_backward(False)


def _bring(module: nn.Module, device: torch.device, team: Team, but: Collection[nn.Module] = ()) -> None:
    """Give parameters and buffers their memory on the device, and the leader's numbers; what is tied stays tied."""
    done: dict[Tensor, Tensor] = {}
    for place, name, tensor in list(_tensors(module, but)):
        if tensor not in done:
            fresh = torch.empty_like(tensor.detach(), device=device)
            if team.leads:
                fresh.copy_(tensor.detach())
            team.copy_from_leader([fresh])
            is_parameter = isinstance(tensor, nn.Parameter)
            done[tensor] = nn.Parameter(fresh, requires_grad=tensor.requires_grad) if is_parameter else fresh
        place[name] = done[tensor]


def _tensors(module: nn.Module, but: Collection[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for place in (module._parameters, module._buffers):
        yield from ((place, name, tensor) for name, tensor in place.items() if tensor is not None)
    for child in module.children():
        if child not in but:
            yield from _tensors(child, but)
