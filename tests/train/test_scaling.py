"""A base in float16: gradients of a mean over many tokens are not too small for it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llm_adapters as la
from llm_adapters.config.schema import TrainSection
from llm_adapters.train.batches import Batches
from llm_adapters.train.joint import Part, joint_gradients
from llm_adapters.train.loss import labelled_tokens
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.scaling import loss_scale, unscale
from llm_adapters.train.stepper import Stepper
from llm_adapters.train.team import Team
from tiny import put_on, small, tiny_model
from tiny_training import examples, metrics, tiny_training

ROWS = [Numbered(row, example) for row, example in enumerate(examples(1200), start=1)]
TOTAL = sum(labelled_tokens(row.example.labels) for row in ROWS)
CPU = torch.device("cpu")


def _model(dtype: torch.dtype) -> tuple[Any, Any]:
    model = tiny_model("llama")
    for parameter in model.parameters():
        parameter.data.mul_(0.03)  # a hidden state that is far from the loss has a small gradient
    adapter = put_on(model.to(dtype), small("lora"), "a")
    return model.train(), adapter


def _flat(adapter: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])


def _gradients(dtype: torch.dtype) -> torch.Tensor:
    model, adapter = _model(dtype)
    settings = TrainSection.parse({"batch_size": len(ROWS)}, where="test")
    stepper = Stepper(
        model, adapter, settings, learning_rate=1e-3, steps=1, pad_id=0, note=print, team=Team.alone("a test")
    )  # fmt: skip
    stepper._gradients(ROWS, ROWS[:1], TOTAL, passes=10, size=len(ROWS) // 10)
    return _flat(adapter)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_gradients_in_float16_are_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _gradients(torch.float32)
    assert _error(_gradients(torch.float16), expected) < 0.003
    monkeypatch.setattr("llm_adapters.train.stepper.loss_scale", lambda *_: 1.0)
    assert _error(_gradients(torch.float16), expected) > 0.01  # so the scale is what makes it


def test_in_a_cohort_every_member_has_its_own_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watched(parameters: Any, scale: float) -> None:
        seen.append(scale)
        unscale(parameters, scale)

    monkeypatch.setattr("llm_adapters.train.joint.unscale", watched)
    model, adapter = _model(torch.float16)
    other = put_on(model, small("lora", rank=2), "b")
    parts = [Part("a", ROWS, 100), Part("b", ROWS[:3], 3)]
    joint_gradients(model, Batches(model, pad_id=0, device=CPU, packed=True), parts, 200)
    assert seen == [1024, loss_scale(torch.float16, sum(labelled_tokens(row.example.labels) for row in ROWS[:3]))]
    assert seen[1] == 8
    found = [_flat(adapter), _flat(other)]
    assert _error(found[0], _gradients(torch.float32)) < 0.003
    joint_gradients(model.float(), Batches(model, pad_id=0, device=CPU, packed=True), parts[1:], 200)
    twice = _flat(other)
    assert _error(twice - found[1], found[1]) < 0.003


def test_the_scale_is_a_power_of_two_and_none_elsewhere() -> None:
    assert [loss_scale(torch.float16, n) for n in (0, 1, 2, 3, 1023, 1024, 10**6)] == [1, 1, 2, 2, 512, 1024, 1024]
    assert loss_scale(torch.bfloat16, 4000) == loss_scale(torch.float32, 4000) == 1


def test_a_training_in_float16_runs_and_learns(tmp_path: Path) -> None:
    tiny_training(tmp_path, model=tiny_model("llama").half(), epochs=4, recipe=la.method("lora", rank=4))
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]
