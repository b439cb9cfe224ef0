"""Runs on a tiny model from a folder: interrupted anywhere, refused, gone on with."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_adapters.adapters.store import read_record
from llm_adapters.config.schema import DataSection
from llm_adapters.errors import ConfigError, DataError, OutputError, Stopped
from llm_adapters.runs.begun import differences
from llm_adapters.runs.folder import exclusively
from llm_adapters.runs.run import execute, read_config
from llm_adapters.runs.training_data import TrainingData
from llm_adapters.train import Stop
from tiny_folder import sums, tiny_folder
from tiny_training import checkpoints, metrics, same
from watching import Watching


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_folder(folder / "model")
    sums(folder / "train.jsonl", 30)
    sums(folder / "test.jsonl", 6, start=50)
    return folder


def _settings(place: Path, *more: str) -> list[str]:
    return [
        f"model.source={place / 'model'}", f"data.train={place / 'train.jsonl'}",
        f"evaluate.data={place / 'test.jsonl'}",
        "evaluate.size=null", "evaluate.max_new_tokens=4", "adapter={rank: 2, dropout: 0.2}", "data.validation=6",
        "train={batch_size: 4, epochs: 2, warmup: 2, checkpoint_every: 2, learning_rate: 0.01}", *more,
    ]  # fmt: skip


def _run(place: Path, name: str, watching: Watching | None = None, more: Sequence[str] = (), **options: bool) -> Path:
    return execute(read_config(None, _settings(place, *more)), place / name, watching or Watching(), **options)


def _adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    return _run(place, "whole")


MOMENTS = [("loading", 0), ("evaluating the base", 3), ("training", 5), ("evaluating the tuned", 0),
           ("evaluating the tuned", 3)]  # fmt: skip


@pytest.mark.parametrize(("what", "after"), MOMENTS)
def test_a_run_interrupted_anywhere_ends_as_the_one_left_alone(place: Path, whole: Path, what: str, after: int) -> None:
    name = f"cut-{what[-5:].strip()}-{after}"
    with pytest.raises(Stopped):
        _run(place, name, Watching(what, after))
    assert not (place / name / "manifest.json").exists()
    watching = Watching()
    cut = _run(place, name, watching)
    assert watching.notes[0] == f"going on with the run in '{cut}'"
    assert any("step-4" in note for note in watching.notes) == (what == "training")
    assert any("training" in begun and "rate" in begun for begun in watching.begun) == ("tuned" not in what)
    assert _adapter(cut) == _adapter(whole)
    assert metrics(cut) == metrics(whole)
    assert same(checkpoints(cut), checkpoints(whole))
    for file in ("eval/test.jsonl", "eval/summary.json"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in (cut, whole))
    assert one["training"]["steps"] == other["training"]["steps"] == 12
    assert one["data"] == other["data"]


def test_a_complete_run_is_refused_and_force_starts_again(place: Path, whole: Path) -> None:
    _run(place, "twice")
    with pytest.raises(OutputError, match="complete run") as caught:
        _run(place, "twice")
    assert "--force" in str(caught.value)
    (place / "twice" / ".adapter-abcd1234").mkdir()
    watching = Watching()
    _run(place, "twice", watching, force=True)
    assert watching.notes == []
    assert _adapter(place / "twice") == _adapter(whole)


def test_what_a_kill_has_left_is_cleared_and_nothing_else(place: Path, whole: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "left", Watching("training", 5))
    (place / "left" / ".adapter-abcd1234").mkdir()
    (place / "left" / ".manifest.json-77").write_text("{")
    (place / "left" / ".eval-settings").write_text("the user's")
    _run(place, "left")
    assert [path.name for path in (place / "left").glob(".*")] == [".eval-settings"]
    assert _adapter(place / "left") == _adapter(whole)
    (place / "first").mkdir()
    for name in ("begun.json", ".config.yaml-77"):
        (place / "first" / name).write_text("{")
    _run(place, "first")
    assert _adapter(place / "first") == _adapter(whole)
    (place / "notes").mkdir()
    (place / "notes" / "thesis.tex").write_text("the user's")
    with pytest.raises(OutputError, match="exists"):
        _run(place, "notes")


def test_another_configuration_is_named_field_by_field(place: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "other", Watching("training", 5))
    before = sorted(path.name for path in (place / "other").rglob("*"))
    with pytest.raises(OutputError) as caught:
        _run(place, "other", more=["train.epochs=3", "adapter.rank=3"])
    said = str(caught.value)
    assert "adapter.rank: 2 there, 3 now" in said
    assert "train.epochs: 2.0 there, 3.0 now" in said
    assert sorted(path.name for path in (place / "other").rglob("*")) == before


def test_what_has_no_effect_on_training_may_change(place: Path, whole: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "oftener", Watching("training", 5))
    folder = _run(place, "oftener", more=["train.keep_checkpoints=3", "train.checkpoint_minutes=1"])
    assert _adapter(folder) == _adapter(whole)
    assert "keep_checkpoints: 3" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "manifest.json").read_text())["config"]["train"]["keep_checkpoints"] == 3


def test_a_dtype_that_was_found_by_itself_may_be_named_but_not_changed(place: Path, whole: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "named", Watching("training", 5))
    with pytest.raises(OutputError, match="since then the dtype of the base changed") as caught:
        _run(place, "named", more=["model.dtype=bfloat16"])
    assert "mend:    model.dtype=float32, " in str(caught.value)
    assert _adapter(_run(place, "named", more=["model.dtype=float32"])) == _adapter(whole)


def test_changed_data_is_not_gone_on_with(place: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "changed", Watching("training", 5))
    for name, what in (("train", "training and the validation"), ("test", "test")):
        path = place / f"{name}.jsonl"
        text = path.read_text()
        path.write_text(text.replace("?", "??"))
        try:
            with pytest.raises(OutputError, match=f"the {what} data changed"):
                _run(place, "changed")
        finally:
            path.write_text(text)


def test_being_asked_after_the_last_step_keeps_the_training(place: Path, whole: Path) -> None:
    stop = Stop()

    class Asking(Watching):
        def end(self, result: str) -> None:
            stop.asked = stop.asked or "steps, loss" in result

    with pytest.raises(Stopped, match="after training"):
        execute(read_config(None, _settings(place)), place / "asked", Asking(), stop=stop)
    watching = Watching()
    _run(place, "asked", watching)
    assert not any("rate" in begun for begun in watching.begun)
    assert (place / "asked/eval/test.jsonl").read_bytes() == (whole / "eval/test.jsonl").read_bytes()


def test_training_alone_goes_on_with_what_a_run_began(place: Path, whole: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "begun", Watching("evaluating the base", 3))
    _run(place, "begun", score=False)
    assert _adapter(place / "begun") == _adapter(whole)


def test_another_machine_or_version_is_said(place: Path) -> None:
    with pytest.raises(Stopped):
        _run(place, "moved", Watching("training", 5))
    path = place / "moved" / "begun.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    watching = Watching()
    _run(place, "moved", watching)
    assert [note for note in watching.notes if "versions.torch: '1.0' there" in note]


def test_one_folder_is_one_process(place: Path) -> None:
    (place / "held").mkdir()
    with exclusively(place / "held"), pytest.raises(OutputError, match="another process"):
        _run(place, "held")
    assert os.listdir(place / "held") == []


def test_rows_are_held_out_by_seed_and_keep_their_numbers(place: Path) -> None:
    section = read_config(None, _settings(place, "data.size=24")).data  # a sample of 30
    data, again, other = TrainingData.of(section, 0), TrainingData.of(section, 0), TrainingData.of(section, 1)
    assert (len(data.examples), len(data.validation)) == (18, 6)
    assert data == again
    assert data.validation != other.validation
    for row, example in zip(data.rows, data.examples, strict=True):
        assert example.instruction == f"{row - 1} + {(row - 1) % 7}?"
    assert not {example.instruction for example in data.validation} & {e.instruction for e in data.examples}


def test_validation_from_a_file(place: Path) -> None:
    section = read_config(None, _settings(place, f"data.validation={place / 'test.jsonl'}")).data
    data = TrainingData.of(section, 0)
    assert (len(data.examples), len(data.validation)) == (30, 6)


@pytest.mark.parametrize(("validation", "said"), [("30", "has 30"), ("word-problems", "holds out"), ("sms", "sms")])
def test_validation_that_cannot_be_is_refused(place: Path, validation: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TrainingData.of(read_config(None, _settings(place, f"data.validation={validation}")).data, 0)


def test_patience_without_validation_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"train\.patience needs validation data"):
        read_config(None, ["train.patience=3"])


def test_differences_name_fields_of_either_side() -> None:
    found = differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4, "e": 5}, "d": 3})
    assert found == ["a.c: 2 there, 4 now", "a.e: None there, 5 now"]


def test_the_saved_adapter_says_what_it_is(whole: Path) -> None:
    assert read_record(whole / "adapter")["methods"][0]["rank"] == 2


def test_rows_without_a_text_to_learn_are_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "answer": "b"}, {"instruction": "c", "answer": "d"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"1 of 2 examples have no 'output' to train on \(first: row 2\)"):
        TrainingData.of(DataSection(train=str(tmp_path / "train.jsonl")), 0)
