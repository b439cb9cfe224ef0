"""Validation: its loss, the best adapter, stopping early."""

from pathlib import Path

import pytest
import torch

import llm_adapters as la
from llm_adapters.data.collate import collate
from llm_adapters.data.encoding import Encoded
from llm_adapters.train.batches import Batches
from llm_adapters.train.numbered import Numbered
from llm_adapters.train.position import Position
from llm_adapters.train.validation import Validation
from tiny import put_on, small, tiny_model
from tiny_training import checkpoints, examples, metrics, noise, same, tiny_training

OVERFIT = {"epochs": 20, "count": 8, "held_out": 8, "validate_every": 2, "seed": 7}
"""Eight rows learnt by heart: validation gets worse after a while."""


def _batches(model: torch.nn.Module) -> Batches:
    return Batches(model, pad_id=0, device=torch.device("cpu"))


def _measured(model: torch.nn.Module, rows: list[Encoded], size: int) -> float:
    validation = Validation([Numbered(i, row) for i, row in enumerate(rows, start=1)])
    return validation.mean([validation.measure(model, _batches(model), size)])


def _losses(folder: Path) -> dict[float, float]:
    return {row["step"]: row["validation_loss"] for row in metrics(folder) if "validation_loss" in row}


def test_the_loss_is_the_mean_over_label_tokens_of_the_model_as_it_is() -> None:
    model = tiny_model("llama").train()
    put_on(model, small("lora", dropout=0.9), "a")
    rows = examples(7)
    torch.manual_seed(5)
    measured = [_measured(model, rows, size) for size in (7, 2)]
    assert model.training
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    batch = collate(rows, 0)
    with torch.no_grad():
        expected = float(model.eval()(**batch).loss)  # transformers' own loss: the mean over all labels
    assert measured == pytest.approx([expected, expected], rel=1e-5)


def test_validation_has_its_own_rows_and_changes_nothing_else(tmp_path: Path) -> None:
    _, without = tiny_training(tmp_path / "without", seed=1)
    result, adapter = tiny_training(tmp_path / "with", held_out=8, validate_every=2, seed=1)
    assert list(_losses(tmp_path / "with")) == [2, 4, 6]
    assert [row for row in metrics(tmp_path / "with") if "loss" in row] == metrics(tmp_path / "without")
    assert result.best_step == 6
    assert same(adapter, without)


def test_once_an_epoch_and_at_the_end_unless_said_otherwise(tmp_path: Path) -> None:
    tiny_training(tmp_path, epochs=2.4, held_out=4)
    assert list(_losses(tmp_path)) == [3, 6, 8]


def test_the_adapter_ends_as_it_was_at_the_best_validation(tmp_path: Path) -> None:
    result, adapter = tiny_training(tmp_path, **OVERFIT)
    losses = _losses(tmp_path)
    best = min(losses, key=lambda step: losses[step])
    assert best < 20  # the last step is not the best
    assert (result.best_step, result.best_loss, result.steps) == (best, losses[best], 20)
    model = tiny_model("llama")
    kept = la.attach(model, tmp_path / "checkpoints" / f"step-{best}", "kept")
    assert same(dict(kept.state_dict()), adapter)
    again = _measured(model, noise(8), 8)
    assert again == pytest.approx(losses[best], rel=1e-6)


def test_patience_ends_the_training(tmp_path: Path) -> None:
    tiny_training(tmp_path / "whole", **OVERFIT)
    result, adapter = tiny_training(tmp_path / "early", **OVERFIT, patience=3)
    losses = _losses(tmp_path / "early")
    assert result.best_step is not None
    assert result.steps == result.best_step + 6 < 20
    assert all(loss >= losses[result.best_step] for step, loss in losses.items() if step > result.best_step)
    whole = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "early") == whole[: len(metrics(tmp_path / "early"))]
    again, same_adapter = tiny_training(tmp_path / "early", **OVERFIT, patience=3)
    assert again.steps == result.steps
    assert same(adapter, same_adapter)


def test_a_training_gone_on_with_knows_the_best_before_it(tmp_path: Path) -> None:
    options = {**OVERFIT, "patience": 5, "checkpoint_every": 3}

    def cut(row: dict[str, float]) -> None:
        if row["step"] == 8:
            raise KeyboardInterrupt

    result, expected = tiny_training(tmp_path / "whole", **options)
    assert result.best_step is not None
    assert result.best_step < 6
    assert result.steps > 8
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", **options, on_step=cut)
    again, adapter = tiny_training(tmp_path / "cut", **options)
    assert again.resumed == [6]
    assert again.best_step == result.best_step
    assert same(adapter, expected)
    assert same(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"))


def test_an_equal_loss_is_no_improvement() -> None:
    position = Position(step=2)
    assert position.judge(1.5)
    position.step = 4
    assert not position.judge(1.5)
    assert (position.best_step, position.exhausted(1), position.exhausted(2)) == (2, True, False)


def test_a_larger_accuracy_is_better_and_of_equal_ones_the_smaller_loss() -> None:
    position = Position()
    judged = []
    for step, (loss, accuracy) in enumerate([(1.0, 0.2), (1.5, 0.4), (0.5, 0.3), (1.2, 0.4), (1.3, 0.4)], start=1):
        position.step = step
        judged.append(position.judge(loss, accuracy))
    assert judged == [True, True, False, True, False]
    assert (position.best_step, position.best_loss, position.best_accuracy) == (4, 1.2, 0.4)
    assert position.exhausted(1)


def test_the_adapter_ends_as_it_was_where_accuracy_was_largest(tmp_path: Path) -> None:
    given = iter([0.1, 0.5, 0.3])
    result, adapter = tiny_training(tmp_path, held_out=8, validate_every=2, accuracy=lambda: next(given))
    assert [row["validation_accuracy"] for row in metrics(tmp_path) if "validation_accuracy" in row] == [0.1, 0.5, 0.3]
    assert (result.best_step, result.best_accuracy, result.best_loss) == (4, 0.5, _losses(tmp_path)[4])
    kept = la.attach(tiny_model("llama"), tmp_path / "checkpoints" / "step-4", "kept")
    assert same(dict(kept.state_dict()), adapter)
