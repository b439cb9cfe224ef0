"""Everything that moves while training, as files and back, bit for bit; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.store import files_of, load_state
from llm_adapters.errors import OutputError
from llm_adapters.train.position import Position
from llm_adapters.train.randomness import RandomState
from llm_adapters.train.team import Team

_OPTIMIZER, _RANDOM, _POSITION = "optimizer.safetensors", "random.safetensors", "position.json"


DTYPE = "dtype of the base"
"""Its name in the identity of a training, where it is no digest."""


class TrainingState:
    """Adapter, optimiser, schedule, random numbers and position of a training.

    Args:
        identity: what the training is – data, recipe – as digests under readable names.
    """

    def __init__(
        self, adapter: Adapter, optimizer: Optimizer, schedule: LambdaLR, position: Position, identity: dict[str, str]
    ) -> None:
        self.adapter, self.optimizer, self.schedule = adapter, optimizer, schedule
        self.position, self.identity = position, identity
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in adapter.named_parameters()}
        self.device = adapter.base.device

    def files(self) -> dict[str, bytes]:
        """A checkpoint's files: an adapter's, so that it can be attached, and the rest."""
        random = RandomState.take(self.device)
        plain = {
            "position": asdict(self.position),
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"},
            "random": random.plain,
            "identity": self.identity,
        }
        return {
            **files_of(self.adapter),
            _OPTIMIZER: tensors_to_bytes(
                {f"{name}/{kind}": value.detach().cpu().contiguous() for name, kind, value in self._moments()}
            ),
            _RANDOM: tensors_to_bytes(random.tensors),
            _POSITION: (json.dumps(plain) + "\n").encode(),
        }

    def restore(self, folder: Path | None, team: Team) -> None:
        """Go on from a checkpoint that was found whole; the leader reads it for all.

        Args:
            folder: of the checkpoint; only the leader's counts.
            team: of any size, whatever that was when the checkpoint was written.

        Raises:
            OutputError: it is one of another training.
            AdapterError: it belongs to another base.
        """
        plain, kinds = team.from_leader(lambda: self._read(folder))
        if not team.leads:
            for parameter, name in self.names.items():
                self.optimizer.state[parameter] = {
                    kind: torch.empty(shape, dtype=getattr(torch, dtype), device=parameter.device)
                    for of, kind, shape, dtype in kinds
                    if of == name
                }
        team.copy_from_leader(self.adapter.state_dict().values())
        team.copy_from_leader(value for _, _, value in self._moments())
        self.schedule.load_state_dict({**plain["schedule"], "lr_lambdas": [None] * len(self.schedule.lr_lambdas)})
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.position = Position(**plain["position"])

    def _read(self, folder: Path | None) -> tuple[dict[str, Any], list[tuple[str, str, list[int], str]]]:
        """Take over adapter, moments and random numbers; gives the rest, and name, shape and dtype of every moment."""
        assert folder is not None
        plain: dict[str, Any] = json.loads((folder / _POSITION).read_text(encoding="utf-8"))
        changed = [name for name, digest in self.identity.items() if plain["identity"].get(name, digest) != digest]
        if changed:
            as_then = f"model.dtype={plain['identity'][DTYPE]}, " if DTYPE in changed else ""
            raise OutputError(
                f"'{folder}' is a checkpoint of another training: since then the {' and the '.join(changed)} changed",
                mend=f"{as_then}--out another/folder, or --force to start again",
            )
        self.restore_adapter(folder)
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors_from_bytes((folder / _OPTIMIZER).read_bytes()).items():
            name, _, kind = key.rpartition("/")
            moments.setdefault(name, {})[kind] = value
        for parameter, name in self.names.items():
            if name in moments:
                self.optimizer.state[parameter] = {
                    kind: value.to(parameter.device) for kind, value in moments[name].items()
                }
        RandomState(plain["random"], tensors_from_bytes((folder / _RANDOM).read_bytes())).restore()
        return plain, [
            (name, kind, list(value.shape), str(value.dtype).removeprefix("torch."))
            for name, kind, value in self._moments()
        ]

    def restore_adapter(self, folder: Path) -> None:
        """Give the adapter the parameters that it had at a checkpoint."""
        self.adapter.load_state_dict(load_state(folder, self.adapter.base))

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        """Name of the parameter, kind and value of everything that the optimiser keeps."""
        for parameter, moments in self.optimizer.state.items():
            yield from ((self.names[parameter], kind, torch.as_tensor(value)) for kind, value in moments.items())
