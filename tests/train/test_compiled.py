"""Training with torch.compile: the same losses, layers of one kind compiled once, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import llm_adapters as la
from llm_adapters.errors import TrainingError
from llm_adapters.model import find_sites
from llm_adapters.train import Stop
from tiny import tiny_model
from tiny_training import metrics, tiny_training


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Compiling without generating code, which takes a minute; graphs, guards and hooks are those of the real thing."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=counter, **options))
    return counter


def _losses(folder: Path, recipe: Any, **options: Any) -> list[float]:
    model = tiny_model("llama", num_hidden_layers=4)
    tiny_training(folder, recipe=recipe, model=model, epochs=1, micro_batch=3, held_out=3, **options)
    assert not any(block._compiled_call_impl for block in find_sites(model).blocks)
    return [row[key] for row in metrics(folder) for key in ("loss", "validation_loss") if key in row]


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("name", ["lora", "series", "parallel", "prefix", "prompt"])
def test_losses_are_those_of_plain_layers(
    name: str, options: dict[str, Any], counted: CompileCounterWithBackend, tmp_path: Path
) -> None:
    recipe = la.method(name)
    plain = _losses(tmp_path / "plain", recipe, **options)
    assert counted.frame_count == 0
    assert _losses(tmp_path / "compiled", recipe, compile=True, **options) == pytest.approx(plain, rel=1e-5)
    layers = 4  # share what is compiled: the first, whose input may have no gradient, and the others; and in validation
    pieces = 2 if name in ("prefix", "prompt") else 1  # before attention, and after what enters it
    assert 1 <= counted.frame_count <= 3 * pieces < layers * pieces


def test_a_compiler_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise ValueError("no compiler here")

    torch._dynamo.reset()
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=broken, **options))
    with pytest.raises(TrainingError, match=r"torch\.compile failed in step 1") as failure:
        _losses(tmp_path, la.method("lora"), compile=True)
    assert "train.compile=false" in str(failure.value)


@pytest.mark.slow
def test_by_inductor_a_stopped_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {"compile": True, "epochs": 2}
    _, whole = tiny_training(tmp_path / "whole", **options)
    stop = Stop()

    def after_two(row: dict[str, float]) -> None:
        stop.asked = stop.asked or row["step"] == 2

    with pytest.raises(la.errors.Stopped):
        tiny_training(tmp_path / "parts", stop=stop, on_step=after_two, **options)
    _, parts = tiny_training(tmp_path / "parts", **options)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    _, plain = tiny_training(tmp_path / "plain", epochs=2)
    for key in whole:
        torch.testing.assert_close(whole[key], plain[key], rtol=1e-3, atol=1e-4)
