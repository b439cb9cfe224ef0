"""Checkpoints: the adapter as it is trained, its optimiser, random state and position; nothing is pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from torch.optim import Optimizer

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.store import save, write_synced


def save_checkpoint(folder: Path, adapter: Adapter, optimizer: Optimizer, position: dict[str, Any]) -> Path:
    """Write ``folder/step-N``, whole or not at all.

    It holds an adapter folder's files, so that it can be attached, with reparametrizations not folded away.

    Args:
        folder: the ``checkpoints`` folder of a run.
        adapter: what is trained.
        optimizer: its moments are written under the adapter's parameter names.
        position: where training stands; ``step`` names the folder.
    """
    final = folder / f"step-{position['step']}"
    fresh = folder / f".{final.name}-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    save(adapter, fresh, fold=False)
    write_synced(fresh / "optimizer.safetensors", tensors_to_bytes(_moments(adapter, optimizer)))
    write_synced(fresh / "random.safetensors", tensors_to_bytes({"torch": torch.get_rng_state()}))
    write_synced(fresh / "position.json", (json.dumps(position, indent=2) + "\n").encode())
    if final.exists():
        shutil.rmtree(final)
    os.replace(fresh, final)
    return final


def _moments(adapter: Adapter, optimizer: Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in adapter.named_parameters()}
    return {
        f"{names[id(parameter)]}/{kind}": torch.as_tensor(value).detach().cpu().clone()
        for parameter, moments in optimizer.state.items()
        for kind, value in moments.items()
    }
