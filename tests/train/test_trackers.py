"""Trackers get the recipe and the rows of metrics.jsonl, go on in one run after a cut, and never end a training."""

import json
import os
import shutil
import sqlite3
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

import llm_adapters as la
from llm_adapters.config.schema import TrainSection
from llm_adapters.errors import MissingExtraError
from llm_adapters.train import trackers
from llm_adapters.train.trackers import Trackers, recipe_of
from tiny import tiny_model
from tiny_training import metrics, same, tiny_training

OPTIONS: dict[str, Any] = {"checkpoint_every": 2, "held_out": 4, "validate_every": 2}
TAGS = ("loss", "grad_norm", "learning_rate", "tokens", "validation_loss")
RECIPE = {
    "seed": 0, "learning_rate": 0.01, "adapter": "lora", "lora.rank": 4, "lora.sites": '["linears"]',
    "train.batch_size": 8, "train.schedule": "linear", "train.packing": 1,
}  # fmt: skip


def _where(*names: str) -> list[Any]:
    """These trackers, each skipped where it is not installed."""
    why = "is not installed: pip install 'llm-adapters[trackers]'"
    return [pytest.param(n, marks=pytest.mark.skipif(find_spec(n) is None, reason=f"{n} {why}")) for n in names]


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything stays in ``tmp_path`` and on this machine."""
    for name in [key for key in os.environ if key.startswith(("WANDB_", "TRACKIO_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a process that has used nothing of accelerate's
    for module in [key for key in sys.modules if key.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)  # it reads TRACKIO_DIR once, when it is imported
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its process, with the locations of this test


@dataclass
class Found:
    """What a tracker holds: its runs, the recipe, and every value with its step in the order of arrival."""

    runs: set[str] = field(default_factory=set)
    recipe: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))


def _tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    reader = EventAccumulator(str(folder / "trackers/tensorboard"))
    reader.Reload()
    found = Found({str(path.parent) for path in (folder / "trackers/tensorboard").rglob("*") if path.is_file()})
    content = HParamsPluginData.FromString(reader.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    for key, value in content.session_start_info.hparams.items():
        found.recipe[key] = getattr(value, value.WhichOneof("kind"))
    for tag in reader.Tags()["scalars"]:
        found.values[tag] = [(event.step, event.value) for event in reader.Scalars(tag)]
    return found


def _wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run, a log as LevelDB's: blocks of 32 KiB with parts that have 7 bytes before them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def _wandb(folder: Path) -> Found:
    found = Found()
    for file in sorted(folder.glob("trackers/wandb/offline-run-*/*.wandb")):
        for record in _wandb_records(file):
            if record.HasField("run"):
                found.runs.add(record.run.run_id)
            for item in record.config.update:
                found.recipe[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                found.values[key].append((row["_step"], value))
    return found


def _trackio(folder: Path) -> Found:
    found = Found()
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / f"{folder.parent.name}.db") as base:
        for run, step, text in base.execute("SELECT run_id, step, metrics FROM metrics ORDER BY id"):
            found.runs.add(run)
            for key, value in json.loads(text).items():
                found.values[key].append((step, value))
        for (text,) in base.execute("SELECT config FROM configs ORDER BY id"):
            found.recipe = json.loads(text)
    return found


def _mlflow(folder: Path) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'trackers/mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = Found({run.info.run_id for run in runs})
    for run in runs:
        assert run.info.status == "FINISHED"
        found.recipe |= {key: _number(value) for key, value in run.data.params.items()}
        for tag in run.data.metrics:
            found.values[tag] += [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, tag)]
    return found


def _number(text: str) -> str | float:
    try:
        return {"True": True, "False": False}[text] if text in ("True", "False") else float(text)
    except ValueError:
        return text


FOUND = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}


def _cut(row: dict[str, float]) -> None:
    if row["step"] == 3:
        raise KeyboardInterrupt


def _wanted(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[tag]) for row in metrics(folder) if tag in row]


@pytest.mark.parametrize("name", _where("tensorboard", "wandb", "trackio", "mlflow"))
def test_a_tracker_holds_the_recipe_and_every_row_and_changes_nothing(tmp_path: Path, name: str) -> None:
    folder, notes = tmp_path / "runs/one", list[str]()
    _, expected = tiny_training(tmp_path / "runs/without", **OPTIONS)
    _, adapter = tiny_training(folder, **OPTIONS, trackers=[name], notes=notes)
    found = FOUND[name](folder)
    assert notes == []
    assert same(adapter, expected)
    assert len(found.runs) == 1
    assert {key: found.recipe[key] for key in RECIPE} == pytest.approx(RECIPE)
    assert "allow_val_change" not in found.recipe  # accelerate's option
    assert found.recipe["parameters.trained"] == sum(tensor.numel() for tensor in adapter.values())
    for tag in TAGS:
        wanted = _wanted(folder, tag)
        assert len(wanted) >= 3
        assert [step for step, _ in found.values[tag]] == [step for step, _ in wanted]
        assert [value for _, value in found.values[tag]] == pytest.approx([value for _, value in wanted], rel=1e-6)


@pytest.mark.parametrize("name", _where("tensorboard", "wandb", "trackio", "mlflow"))
def test_a_training_that_was_cut_goes_on_in_the_same_run(tmp_path: Path, name: str) -> None:
    folder, notes = tmp_path / "runs/one", list[str]()
    with pytest.raises(KeyboardInterrupt):
        tiny_training(folder, **OPTIONS, trackers=[name], micro_batch=8, on_step=_cut)
    before = FOUND[name](folder)
    assert [step for step, _ in before.values["loss"]] == [1, 2, 3]
    result, _ = tiny_training(folder, **OPTIONS, trackers=[name], micro_batch=4, notes=notes)
    assert result.resumed == [2]
    assert [note for note in notes if "tracker" in note] == []
    found = FOUND[name](folder)
    assert found.runs == before.runs
    assert len(found.runs) == 1
    assert {key: found.recipe[key] for key in RECIPE} == pytest.approx(RECIPE)
    for tag in TAGS:
        wanted = _wanted(folder, tag)
        again = [] if name == "tensorboard" or tag == "validation_loss" else [3]
        assert sorted(step for step, _ in found.values[tag]) == sorted([step for step, _ in wanted] + again)
        assert dict(found.values[tag]) == pytest.approx(dict(wanted), rel=1e-6)


@pytest.mark.parametrize("name", _where("wandb", "trackio", "mlflow"))
def test_what_begins_anew_in_a_cleared_folder_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, runs = tmp_path / "runs/one", list[set[str]]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        tiny_training(folder, epochs=1, trackers=[name])
        runs.append(FOUND[name](folder).runs)
    assert len(runs[0]) == 1
    assert len(runs[1] - runs[0]) == 1


@pytest.mark.parametrize("name", _where("mlflow"))
@pytest.mark.parametrize("how", ["deleted", "on another server"])
def test_a_run_that_is_not_there_any_more_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    from mlflow import MlflowClient

    folder, notes = tmp_path / "runs/one", list[str]()
    with pytest.raises(KeyboardInterrupt):
        tiny_training(folder, **OPTIONS, trackers=[name], on_step=_cut)
    (first,) = _mlflow(folder).runs
    if how == "deleted":
        MlflowClient(f"sqlite:///{folder / 'trackers/mlflow.db'}").delete_run(first)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    tiny_training(folder, **OPTIONS, trackers=[name], notes=notes)
    assert [note for note in notes if "tracker" in note] == []
    found = _mlflow(folder)
    assert found.runs == {(folder / "trackers/mlflow-run").read_text()} != {first}
    assert found.recipe["lora.rank"] == 4
    assert [step for step, _ in found.values["loss"]] == [3, 4, 5, 6]


@pytest.mark.parametrize("name", _where("mlflow"))
def test_two_trainings_of_one_process_have_a_database_each(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / "runs/one", tmp_path / "runs/two"):
        tiny_training(folder, epochs=1, trackers=[name])
    assert len(_mlflow(tmp_path / "runs/one").runs) == len(_mlflow(tmp_path / "runs/two").runs) == 1


@pytest.mark.parametrize("name", _where("mlflow"))
def test_a_value_that_is_too_long_is_cut(tmp_path: Path, name: str) -> None:
    notes: list[str] = []
    longest = 6000
    tracked = Trackers([name], tmp_path, notes.append, {"long": "x" * (longest + 1), "short": "y"})
    tracked.start(0)
    tracked.finish()
    assert notes == []
    assert _mlflow(tmp_path).recipe == {"long": "x" * longest, "short": "y"}


def test_the_recipe_names_every_method_by_its_key_in_the_adapter() -> None:
    methods = [la.method("lora", rank=4), la.method("prefix", tokens=3), la.method("lora", rank=2, layers=[0])]
    adapter = la.attach(tiny_model("llama"), methods, "a")
    settings = TrainSection.parse({"learning_rate": 1e-3, "trackers": ["mlflow"], "steps": 7}, where="test")
    found = recipe_of(settings, adapter, 1e-3, 5)
    wanted = {
        "seed": 5, "learning_rate": 1e-3, "adapter": "lora, prefix, lora", "lora.rank": 4, "prefix.tokens": 3,
        "lora_2.rank": 2, "lora_2.layers": "[0]", "train.steps": 7, "train.max_grad_norm": 1.0, "train.packing": True,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    assert not {"train.learning_rate", "train.trackers", "train.patience"} & set(found)
    assert {type(value) for value in found.values()} == {bool, int, float, str}


def test_a_tracker_that_fails_is_told_of_once_closed_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Broken:
        def start(self) -> None: ...
        def store_init_configuration(self, _values: object) -> None: ...
        def log(self, _values: object, step: int) -> None:
            raise ConnectionError(f"no network at step {step}\nmore")

        def finish(self) -> None:
            closed.append(self)
            raise ConnectionError("no network at the end")

    monkeypatch.setattr(trackers, "made", lambda *_arguments: Broken())
    monkeypatch.setattr(trackers, "find_spec", lambda _name: object())
    notes: list[str] = []
    _, expected = tiny_training(tmp_path / "without")
    _, adapter = tiny_training(tmp_path / "with", trackers=["wandb"], notes=notes)
    assert notes == ["the tracker 'wandb' failed and gets nothing more: no network at step 1"]
    assert len(closed) == 1
    assert same(adapter, expected)


def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"llm-adapters\[trackers\]"):
        tiny_training(tmp_path, trackers=["mlflow"])
