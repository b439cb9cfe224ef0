"""Checkpoints: adapter, optimiser, random state and position as tensors and JSON; nothing is pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from llm_adapters.adapters.adapter import Adapter


def save_checkpoint(folder: Path, adapter: Adapter, optimizer: Optimizer, position: dict[str, Any]) -> Path:
    """Write ``folder/step-N``, whole or not at all.

    Args:
        folder: the ``checkpoints`` folder of a run.
        adapter: what is trained; unlike :meth:`Adapter.save` this keeps reparametrizations unfolded.
        optimizer: its moments are written under the adapter's parameter names.
        position: where training stands; ``step`` names the folder.
    """
    final = folder / f"step-{position['step']}"
    fresh = folder / f".{final.name}-{os.getpid()}"
    fresh.mkdir(parents=True)
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in adapter.state_dict().items()},
        fresh / "adapter.safetensors",
    )
    save_file(_moments(adapter, optimizer), fresh / "optimizer.safetensors")
    save_file({"torch": torch.get_rng_state()}, fresh / "random.safetensors")
    (fresh / "position.json").write_text(json.dumps(position, indent=2) + "\n", encoding="utf-8")
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
