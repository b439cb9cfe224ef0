"""Training with torch.compile: the same losses, layers of one kind compiled once, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import llm_adapters as la
from llm_adapters.adapters.attach import engine_of
from llm_adapters.adapters.method import methods
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import Stopped, TrainingError
from llm_adapters.model import find_sites
from llm_adapters.train import Member, Stop, train_cohort
from tiny import IDS, logits, tiny_model
from tiny_training import examples, metrics, tiny_training


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Compiling without generating code, which takes a minute; graphs, guards and hooks are those of the real thing."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("eager")
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=counter, **options))
    return counter


def _losses(
    folder: Path, recipe: Any, layers: int = 2, family: str = "llama", micro_batch: int = 3, **options: Any
) -> list[float]:
    model = tiny_model(family, num_hidden_layers=layers)
    tiny_training(folder, recipe=recipe, model=model, epochs=1, micro_batch=micro_batch, **options)
    assert not any(block._compiled_call_impl for block in find_sites(model).blocks)
    assert not engine_of(model).layers_compiled
    return [row[key] for row in metrics(folder) for key in ("loss", "validation_loss") if key in row]


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("lora", "llama", {"held_out": 3}),
        ("prefix", "llama", {"packing": False}),
        ("prefix", "bloom", {}),
    ],
)
def test_losses_are_those_of_plain_layers_and_layers_share_what_is_compiled(
    name: str, family: str, options: dict[str, Any], counted: CompileCounterWithBackend, tmp_path: Path
) -> None:
    recipe = la.method(name)
    plain = _losses(tmp_path / "plain", recipe, family=family, **options)
    assert counted.frame_count == 0
    compiled = _losses(tmp_path / "compiled", recipe, family=family, compile=True, **options)
    assert compiled == pytest.approx(plain, rel=1e-5)
    two = counted.frame_count
    assert two > 0
    breaks = ["packed_attention"] if name == "lora" else ["AttentionHook", "UntracedCache.update"]
    assert [name for name in breaks if any(name in reason for reason in counters["graph_break"])] == breaks
    assert len(counters["graph_break"]) == len(breaks)
    if name == "lora":
        _losses(tmp_path / "deeper", recipe, layers=3, compile=True, **options)
        assert counted.frame_count == 2 * two


@pytest.mark.parametrize("name", methods())
def test_every_method_trains_alike(name: str, counted: CompileCounterWithBackend, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": la.method(name), "layers": 1, "micro_batch": 8}
    plain = _losses(tmp_path / "plain", **options)
    assert _losses(tmp_path / "compiled", compile=True, **options) == pytest.approx(plain, rel=1e-5)
    assert counted.frame_count > 0


def test_beside_a_prefix_that_is_not_trained_layers_share_what_is_compiled(
    counted: CompileCounterWithBackend, tmp_path: Path
) -> None:
    frames = []
    for layers in (2, 3):
        model = tiny_model("llama", num_hidden_layers=layers)
        la.attach(model, la.method("prefix"), "b")
        before = counted.frame_count
        tiny_training(tmp_path / f"{layers}", model=model, epochs=1, compile=True, recipe=la.method("lora"))
        frames.append(counted.frame_count - before)
    assert frames[0] == frames[1] > 0


def test_layers_that_are_computed_again_are_not_compiled(counted: CompileCounterWithBackend, tmp_path: Path) -> None:
    notes: list[str] = []
    _losses(tmp_path, la.method("lora"), compile=True, gradient_checkpointing=True, notes=notes)
    assert counted.frame_count == 0
    assert any("nothing is compiled" in note for note in notes)


def test_other_numbers_of_examples_are_not_compiled_anew(counted: CompileCounterWithBackend, tmp_path: Path) -> None:
    frames = []
    options: dict[str, Any] = {"recipe": la.method("lora")}
    for micro_batch, beginning in ((4, 0), (3, 9)):  # of eight examples: four and four; or three, three and two
        options |= {"beginning": beginning, "micro_batch": micro_batch, "count": 16 + (beginning > 0)}  # or one alone
        plain = _losses(tmp_path / f"plain{beginning}", **options)
        before = counted.frame_count
        assert _losses(tmp_path / f"compiled{beginning}", compile=True, **options) == pytest.approx(plain, rel=1e-5)
        frames.append(counted.frame_count - before)
    assert 0 < frames[0] == frames[1] - 1  # what follows the attention of a lone example, whose strides are others


def test_decoding_for_accuracy_goes_through_plain_layers(counted: CompileCounterWithBackend, tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    seen: list[int] = []

    def accuracy() -> float:
        before = counted.frame_count
        logits(model.eval(), IDS)
        model.train()
        seen.append(counted.frame_count - before)
        return 0.5

    tiny_training(
        tmp_path, model=model, accuracy=accuracy, held_out=3, best_by="accuracy", compile=True, validate_every=2
    )
    assert seen == [0] * len(seen) != []
    assert counted.frame_count > 0


def test_a_compiler_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise ValueError("no compiler here")

    torch._dynamo.reset()
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=broken, **options))
    with pytest.raises(TrainingError, match="no compiler here") as failure:
        _losses(tmp_path, la.method("lora"), compile=True)
    assert "train.compile=false" in str(failure.value)


def test_with_the_layers_below_cached(counted: CompileCounterWithBackend, tmp_path: Path) -> None:
    recipe = la.method("lora", layers=[1])
    plain = _losses(tmp_path / "plain", recipe)
    both = _losses(tmp_path / "both", recipe, compile=True, cache_frozen_layers=True)
    assert both == pytest.approx(plain, rel=1e-5)
    assert counted.frame_count > 0


def test_a_cohort_does_not_compile(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = la.attach(model, la.method("lora"), "a")
    settings = TrainSection.parse({"compile": True}, where="test")
    member = Member(adapter, examples(8), settings, learning_rate=1e-3, seed=0, folder=tmp_path)
    with pytest.raises(TrainingError, match=r"a cohort does not have train\.compile"):
        train_cohort(model, [member], pad_id=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "prefix"])
@pytest.mark.parametrize("step", [1, 2])
def test_by_inductor_a_stopped_training_ends_with_the_same_bits(name: str, step: int, tmp_path: Path) -> None:
    """What is compiled first has other lengths after it went on: after the second step a single example."""
    torch._dynamo.reset()
    recipe = la.method(name, dropout=0.1) if name == "lora" else la.method(name)
    options: dict[str, Any] = {"recipe": recipe, "count": 17, "micro_batch": 4}
    with fresh_cache():
        _, whole = tiny_training(tmp_path / "whole", compile=True, **options)
    stop = Stop()

    def after(row: dict[str, float]) -> None:
        stop.asked = stop.asked or row["step"] == step

    with pytest.raises(Stopped):
        tiny_training(tmp_path / "parts", stop=stop, on_step=after, compile=True, **options)
    with fresh_cache():
        _, parts = tiny_training(tmp_path / "parts", compile=True, **options)
    assert all(torch.equal(parts[key], whole[key]) for key in whole)
    if name == "prefix":  # dropout draws other numbers than without the compiler
        _, plain = tiny_training(tmp_path / "plain", **options)
        torch.testing.assert_close(whole, plain, rtol=1e-3, atol=1e-4)
