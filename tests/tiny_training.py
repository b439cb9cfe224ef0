"""A training that takes a second: on a tiny model, with everything that can change between two steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import llm_adapters as la
from llm_adapters.adapters.method import Method
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.train import Stop, TrainResult, train
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from tiny import tiny_model

CLOCK = ("seconds", "tokens_per_second")
"""What differs between two runs of the same training."""
Row = dict[str, float]


def examples(count: int, beginning: int = 0) -> list[Encoded]:
    """Runs of consecutive ids of 5 to 8 tokens, of which the first two have no label, behind one beginning."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        start = int(torch.randint(3, 40, (1,), generator=generator))
        ids = list(range(start, start + 5 + i % 4))
        first = list(range(50, 50 + beginning))
        rows.append(Encoded(first + ids, [-100] * (beginning + 2) + ids[2:], truncated=False))
    return rows


def noise(count: int) -> list[Encoded]:
    """Random ids: training on :func:`examples` makes them more likely at first, and then less."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 40, (count, 6), generator=generator).tolist()
    return [Encoded(ids, [-100] * 2 + ids[2:], truncated=False) for ids in rows]


def lines_in(path: Path) -> int:
    """How many lines a file has that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def tiny_training(
    folder: Path,
    *,
    seed: int = 0,
    recipe: Method | None = None,
    count: int = 24,
    beginning: int = 0,
    held_out: int = 0,
    model: nn.Module | None = None,
    accuracy: Callable[[], float] | None = None,
    stop: Stop | None = None,
    on_step: Callable[[Row], None] | None = None,
    notes: list[str] | None = None,
    **settings: Any,
) -> tuple[TrainResult, dict[str, Tensor]]:
    """Train a tiny llama in ``folder`` from the beginning or from its last checkpoint; what came out, and the adapter.

    Dropout is on, so that the random numbers count.
    """
    model = tiny_model("llama") if model is None else model
    torch.manual_seed(seed)
    adapter = la.attach(model, recipe or la.method("lora", rank=4, dropout=0.1), "a")
    fields = TrainSection.parse({"epochs": 2, "batch_size": 8, "warmup": 2, **settings}, where="test")
    result = train(
        model, adapter, examples(count, beginning), fields, learning_rate=1e-2, pad_id=0, seed=seed, folder=folder,
        stop=stop, accuracy=accuracy,
        validation=noise(held_out), on_step=on_step, on_note=None if notes is None else notes.append,
    )  # fmt: skip
    return result, {key: value.clone() for key, value in adapter.state_dict().items()}


def summed_gradients(
    model: Any,
    adapter: nn.Module,
    rows: Sequence[Encoded],
    *,
    packed: bool,
    size: int,
    sharing: bool = False,
    device: str = "cpu",
    ready: Callable[[], None] = lambda: None,
) -> tuple[float, Tensor]:
    """The loss of some rows in micro-batches of ``size``, and all gradients in one vector; none are left behind.

    Args:
        ready: called when the trials of packing are over.
    """
    batches = Batches(model, pad_id=0, device=torch.device(device), packed=packed)
    assert batches.packed == packed
    batches.sharing = sharing
    ready()
    model.train()
    total = 0.0
    for piece in batches.pieces([len(row.input_ids) for row in rows], size):
        with batches.in_force():
            loss = summed_loss(model, batches.tensors([rows[index] for index in piece]), batches.head)
            loss.backward()
        total += float(loss.detach())
    found = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
    for parameter in adapter.parameters():
        parameter.grad = None
    return total, found


def metrics(folder: Path) -> list[Row]:
    """The rows of ``metrics.jsonl`` without the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def checkpoints(folder: Path) -> dict[str, dict[str, Any]]:
    """Everything in the checkpoints of a run but clocks: adapter, moments, random numbers, position."""
    found = {}
    for path in sorted((folder / "checkpoints").iterdir()):
        plain = json.loads((path / "position.json").read_text())
        for key in ("seconds", "resumed"):
            plain["position"].pop(key)
        tensors = {file.name: load_file(file) for file in path.glob("*.safetensors")}
        found[path.name] = {"plain": plain, **tensors}
    return found


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, whatever is nested in it."""
    if isinstance(one, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other
