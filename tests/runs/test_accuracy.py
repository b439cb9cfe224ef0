"""The best by the accuracy on validation rows: measured by decoding, without a trace in the training."""

import json
from pathlib import Path

import pytest

from llm_adapters.errors import ConfigError, DataError
from llm_adapters.runs.run import execute, read_config
from tiny_folder import sums, tiny_folder


class Silent:
    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...
    def note(self, text: str) -> None: ...


def _rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_accuracy_is_logged_and_training_stays_what_it_was(tmp_path: Path) -> None:
    sets = [
        f"model.source={tiny_folder(tmp_path / 'model')}",
        f"data.train={sums(tmp_path / 'train.jsonl', 24)}",
        "data.validation=4",
        "train.batch_size=5",
        "train.epochs=2",
        "train.validate_every=2",
        "evaluate.max_new_tokens=12",
        "adapter.dropout=0.1",
    ]
    for name in ("loss", "accuracy"):
        execute(read_config(None, [*sets, f"train.best_by={name}"]), tmp_path / name, Silent(), score=False)
    by_loss, by_accuracy = _rows(tmp_path / "loss"), _rows(tmp_path / "accuracy")
    assert [row["loss"] for row in by_loss if "loss" in row] == [row["loss"] for row in by_accuracy if "loss" in row]
    found = {row["step"]: row["validation_accuracy"] for row in by_accuracy if "validation_accuracy" in row}
    assert list(found) == [2, 4, 6, 8]
    result = json.loads((tmp_path / "accuracy" / "training.json").read_text())
    assert result["best_accuracy"] == max(found.values()) == found[result["best_step"]]


def test_mistakes_before_weights_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.best_by needs validation data"):
        read_config(None, ["train.best_by=accuracy"])
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"instruction": f"{i}?", "output": "1"}) + "\n" for i in range(9)))
    sets = [f"data.train={bare}", "data.validation=3", "train.best_by=accuracy"]
    with pytest.raises(DataError, match="no 'answer'"):
        execute(read_config(None, sets), tmp_path / "run", Silent(), score=False)
