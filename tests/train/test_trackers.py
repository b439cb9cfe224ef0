"""Trackers get the rows of metrics.jsonl, go on after a kill, and never end a training."""

from pathlib import Path

import pytest

from llm_adapters.errors import MissingExtraError
from llm_adapters.train import trackers
from tiny_training import metrics, same, tiny_training


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / "trackers/tensorboard"))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_tensorboard_holds_every_row_once_also_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = {"checkpoint_every": 2, "held_out": 4, "validate_every": 2, "trackers": ["tensorboard"]}

    def cut(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path, **options, on_step=cut)
    assert 3 in _scalars(tmp_path)["loss"]
    result, _ = tiny_training(tmp_path, **options)
    assert result.resumed == [2]
    found = _scalars(tmp_path)
    for tag in ("loss", "learning_rate", "validation_loss"):
        wanted = {row["step"]: row[tag] for row in metrics(tmp_path) if tag in row}
        assert len(wanted) >= 3
        assert found[tag] == pytest.approx(wanted, rel=1e-6)


def test_a_tracker_that_fails_is_told_of_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def start(self) -> None: ...
        def log(self, _values: object, step: int) -> None:
            raise ConnectionError(f"no network at step {step}\nmore")

        def finish(self) -> None:
            raise AssertionError("it was dropped")

    monkeypatch.setattr(trackers, "made", lambda *_arguments: Broken())
    monkeypatch.setattr(trackers, "find_spec", lambda _name: object())
    notes: list[str] = []
    _, expected = tiny_training(tmp_path / "without")
    _, adapter = tiny_training(tmp_path / "with", trackers=["wandb"], notes=notes)
    assert notes == ["the tracker 'wandb' failed and gets nothing more: no network at step 1"]
    assert same(adapter, expected)


def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"llm-adapters\[trackers\]"):
        tiny_training(tmp_path, trackers=["mlflow"])
