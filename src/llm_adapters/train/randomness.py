"""The random state of Python, NumPy and torch: seeded, taken, put back, written as plain data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_adapters.data.seeding import stable_random
from llm_adapters.train.team import Team


def seed_all(seed: int) -> None:
    """Seed every generator that training may draw from; NumPy takes 32 bits."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, team: Team) -> None:
    """Seed a step in several processes: each draws its own numbers, the same in every session of as many processes.

    One process alone draws on from where it stands.
    """
    if team.size > 1:
        seed_all(int(stable_random("step", seed, step, team.rank).random() * 2**53))


@dataclass(frozen=True)
class RandomState:
    """Where every generator stands.

    Attributes:
        plain: of Python and NumPy, fit for JSON.
        tensors: of torch on the CPU and on the device, uint8.
    """

    plain: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def take(cls, device: torch.device) -> RandomState:
        """The present state, with that of ``device`` beside the CPU's."""
        legacy = np.random.get_state(legacy=False)
        assert isinstance(legacy, dict)
        numpy = {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}}
        tensors = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            tensors[device.type] = torch.get_device_module(device).get_rng_state()
        return cls({"python": random.getstate(), "numpy": numpy}, tensors)

    def restore(self) -> None:
        """Let all generators go on from here."""
        version, words, gauss = self.plain["python"]
        random.setstate((version, tuple(words), gauss))
        numpy = self.plain["numpy"]
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}})
        for kind, state in self.tensors.items():
            if kind == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(kind).set_rng_state(state)
