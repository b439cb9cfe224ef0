"""Killed anywhere, a training goes on and ends with the bits of one that was left alone."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llm_adapters as la
from forks import ended, forked
from killing import killed_at_call
from llm_adapters.adapters.method import Method
from llm_adapters.errors import AdapterError, OutputError
from tiny import small, tiny_model
from tiny_training import checkpoints, lines_in, metrics, same, tiny_training

Undisturbed = tuple[Path, dict[str, torch.Tensor]]
LONG: dict[str, Any] = {"epochs": 24, "checkpoint_every": 4, "validate_every": 6, "held_out": 8}
STEPS, KILLS = 72, 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, tiny_training(folder, **LONG)[1]


def _killed_when(folder: Path, ready: Callable[[], bool]) -> int:
    """Train, and be killed from outside as soon as ``ready``."""
    child = forked(lambda: tiny_training(folder, **LONG))
    while not ready():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def _rows(folder: Path) -> int:
    return lines_in(folder / "metrics.jsonl")


def test_a_training_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path, undisturbed: Undisturbed) -> None:
    rng, within_checkpoints = random.Random(0), 0
    for kill in range(KILLS):
        folder, at = tmp_path / "checkpoints", _rows(tmp_path) + rng.randrange(3)
        if kill % 2:
            code = killed_at_call(rng.randrange(1, 40), lambda: tiny_training(tmp_path, **LONG))
        elif kill % 4:
            code = _killed_when(tmp_path, lambda folder=folder: any(folder.glob(".step-*")))
        else:
            code = _killed_when(tmp_path, lambda at=at: _rows(tmp_path) > at)
        assert code == -signal.SIGKILL
        within_checkpoints += any(folder.glob(".step-*"))
    result, adapter = tiny_training(tmp_path, **LONG)
    assert len(result.resumed) > 5
    assert within_checkpoints > 5
    assert result.steps == STEPS
    folder, expected = undisturbed
    assert same(adapter, expected)
    assert metrics(tmp_path) == metrics(folder)
    assert same(checkpoints(tmp_path), checkpoints(folder))


@pytest.mark.parametrize("name", ["lora", "prefix", "pfeiffer", "p_tuning"])
def test_every_kind_of_adapter_goes_on_with_its_optimiser_and_its_dropout(tmp_path: Path, name: str) -> None:
    fields = {"dropout": 0.3} if name == "lora" else {}
    recipe = small(name, **fields)
    _, expected = tiny_training(tmp_path / "whole", recipe=recipe, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", recipe=recipe, checkpoint_every=2, on_step=_interrupting(5))
    result, adapter = tiny_training(tmp_path / "cut", recipe=recipe, checkpoint_every=2)
    assert result.resumed == [4]
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"))


def _interrupting(step: int) -> Callable[[dict[str, float]], None]:
    def interrupt(row: dict[str, float]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return interrupt


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    result, adapter = tiny_training(tmp_path, checkpoint_every=6)
    again, same_adapter = tiny_training(tmp_path, checkpoint_every=6, on_step=_interrupting(1))
    assert same(adapter, same_adapter)
    assert (again.steps, again.tokens, again.last_loss) == (result.steps, result.tokens, result.last_loss)


def test_checkpoints_of_another_training_are_not_gone_on_with(tmp_path: Path) -> None:
    tiny_training(tmp_path, checkpoint_every=3)
    for change, said in (({"count": 16}, "training data"), ({"batch_size": 4}, "recipe"), ({"seed": 1}, "recipe")):
        with pytest.raises(OutputError, match=f"the {said} changed"):
            tiny_training(tmp_path, **{"checkpoint_every": 3, **change})
    with pytest.raises(AdapterError, match="another base"):
        tiny_training(tmp_path, checkpoint_every=3, model=tiny_model("gpt2"))


def test_another_scale_of_the_same_shapes_is_another_training(tmp_path: Path) -> None:
    def recipe(alpha: float) -> Method:
        return la.method("lora", rank=4, alpha=alpha)

    tiny_training(tmp_path, recipe=recipe(8), checkpoint_every=2)
    with pytest.raises(OutputError, match="another training: since then the adapter changed"):
        tiny_training(tmp_path, recipe=recipe(16), checkpoint_every=2)
    with pytest.raises(OutputError, match="since then the dtype of the base changed"):
        tiny_training(tmp_path, recipe=recipe(8), checkpoint_every=2, model=tiny_model("llama").bfloat16())


def test_a_training_goes_on_with_fewer_rows_at_once_and_activations_computed_again(tmp_path: Path) -> None:
    """The mends that a lack of memory is told with."""
    recipe = la.method("lora", rank=4)
    tiny_training(tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", recipe=recipe, checkpoint_every=2, on_step=_interrupting(3))
    less: dict[str, Any] = {"micro_batch": 3, "gradient_checkpointing": True}
    result, _ = tiny_training(tmp_path / "cut", recipe=recipe, checkpoint_every=2, **less)
    assert result.resumed == [2]
    assert result.micro_batch == 3
    for row, expected in zip(metrics(tmp_path / "cut"), metrics(tmp_path / "whole"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_micro_batch_stays_as_small_as_memory_made_it_and_that_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    tiny_training(tmp_path, checkpoint_every=2, micro_batch=2, steps=4)
    (tmp_path / "checkpoints/step-4").rename(tmp_path / "away")
    result, _ = tiny_training(tmp_path, checkpoint_every=2, micro_batch=4, steps=4, notes=notes)
    assert result.micro_batch == 2
    assert notes[1:] == ["2 rows at a time, as before the interruption, not 4"]


def test_a_lost_metrics_file_is_said_and_stops_nothing(tmp_path: Path) -> None:
    _, expected = tiny_training(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", checkpoint_every=4, on_step=_interrupting(5))
    (tmp_path / "cut" / "metrics.jsonl").unlink()
    notes: list[str] = []
    _, adapter = tiny_training(tmp_path / "cut", checkpoint_every=4, notes=notes)
    assert any("lacks 4 of the rows" in note for note in notes)
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [5, 6]
    assert same(adapter, expected)


def test_a_checkpoint_can_be_attached(tmp_path: Path) -> None:
    _, state = tiny_training(tmp_path, checkpoint_every=6)
    again = la.attach(tiny_model("llama"), tmp_path / "checkpoints" / "step-6", "again")
    assert same(dict(again.state_dict()), state)
