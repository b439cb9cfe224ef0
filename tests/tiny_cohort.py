"""A cohort on a tiny model, and each of its members trained alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import llm_adapters as la
from llm_adapters.adapters.method import Method
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.train import Member, Stop, TrainResult, train, train_cohort
from llm_adapters.train.member import Outcome
from tiny import Letters, small, tiny_model
from tiny_training import examples, noise

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """One member; ``settings`` are fields of the section ``train``."""

    name: str
    method: Method
    rate: float = 1e-2
    seed: int = 0
    rows: Sequence[Encoded] = field(default_factory=lambda: examples(24))
    held_out: int | Sequence[Encoded] = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def section(self) -> TrainSection:
        return TrainSection.parse({"epochs": 2, "batch_size": 8, "warmup": 2, **self.settings}, where="test")

    def validation(self) -> Sequence[Encoded]:
        """The rows held out, or so many of noise."""
        return noise(self.held_out) if isinstance(self.held_out, int) else self.held_out

    def having(self, **settings: Any) -> Recipe:
        """The same with other settings."""
        return replace(self, settings={**self.settings, **settings})


def eight() -> list[Recipe]:
    """Two LoRA ranks, series, parallel, prefix, prompt, two learning rates; seeds and orders of their own."""
    return [
        Recipe("low", small("lora", rank=2), seed=1),
        Recipe("high", small("lora", rank=8), seed=2),
        Recipe("series", small("series"), seed=3),
        Recipe("parallel", small("parallel"), seed=4),
        Recipe("prefix", small("prefix"), rate=3e-2, seed=5),
        Recipe("prompt", small("prompt"), rate=3e-2, seed=6),
        Recipe("slow", small("lora", rank=4), rate=1e-3, seed=7),
        Recipe("fast", small("lora", rank=4), rate=2e-2, seed=7),
    ]


def _attached(model: nn.Module, recipe: Recipe) -> Any:
    torch.manual_seed(recipe.seed)
    return la.attach(model, recipe.method, recipe.name, tokenizer=Letters())


def alone(recipe: Recipe, place: Path, model: nn.Module | None = None) -> tuple[TrainResult, State]:
    """One member's training by itself, in a folder of its name."""
    folder = place / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("llama") if model is None else model
    adapter = _attached(model, recipe)
    result = train(
        model, adapter, recipe.rows, recipe.section(), learning_rate=recipe.rate, pad_id=0, seed=recipe.seed,
        folder=folder, validation=recipe.validation(),
    )  # fmt: skip
    return result, _state(adapter)


def together(
    recipes: Sequence[Recipe],
    place: Path,
    *,
    model: nn.Module | None = None,
    ended: dict[str, int] | None = None,
    rows: int | None = None,
    spoil: Callable[[dict[str, Any]], None] = lambda _adapters: None,
    stop: Stop | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda _member, _row: None,
    on_end: Callable[[int, TrainResult], None] = lambda _member, _result: None,
    notes: list[str] | None = None,
) -> tuple[list[Outcome], list[State]]:
    """The cohort, each member in a folder of its name; ``spoil`` may change the fresh adapters."""
    model = tiny_model("llama") if model is None else model
    adapters = [_attached(model, recipe) for recipe in recipes]
    spoil({adapter.name: adapter for adapter in adapters})
    members = []
    for recipe, adapter in zip(recipes, adapters, strict=True):
        (place / recipe.name).mkdir(parents=True, exist_ok=True)
        members.append(Member(
            adapter, recipe.rows, recipe.section(), recipe.rate, recipe.seed, place / recipe.name,
            recipe.validation(), None, (ended or {}).get(recipe.name),
        ))  # fmt: skip
    outcomes = train_cohort(
        model, members, pad_id=0, rows=rows, stop=stop, on_step=on_step, on_end=on_end,
        on_note=(lambda _text: None) if notes is None else notes.append,
    )  # fmt: skip
    return outcomes, [_state(adapter) for adapter in adapters]


def _state(adapter: nn.Module) -> State:
    return {key: value.clone() for key, value in adapter.state_dict().items()}
