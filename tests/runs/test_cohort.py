"""Cohorts of runs: the folders of runs by themselves, from one base."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import ConfigError, OutputError, Stopped
from llm_adapters.evaluation import runner
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.report import write_report
from llm_adapters.runs.cohort import execute_cohort
from llm_adapters.runs.run import execute, read_config
from tiny import gap
from tiny_folder import sums, tiny_folder
from tiny_training import checkpoints, metrics, same
from watching import Watching

MEMBERS = {
    "lora": ["adapter={rank: 2, dropout: 0.2}", "train.micro_batch=2", "data.validation=6"],
    "series": ["adapter={method: series, bottleneck: 4}", "seed=1", "train.epochs=3"],
    "prefix": ["adapter={method: prefix, tokens: 3}", "train.batch_size=3", "evaluate.max_new_tokens=3"],
}
ROWS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_folder(folder / "model")
    sums(folder / "train.jsonl", 24)
    sums(folder / "test.jsonl", 6, start=50)
    return folder


def _config(place: Path, name: str, *more: str) -> RunConfig:
    return read_config(None, [
        f"name={name}", f"model.source={place / 'model'}", f"data.train={place / 'train.jsonl'}",
        f"evaluate.data={place / 'test.jsonl'}", "evaluate.size=null", "evaluate.max_new_tokens=4",
        "train={batch_size: 4, epochs: 2, warmup: 2, checkpoint_every: 2, learning_rate: 0.01}",
        *MEMBERS.get(name, []), *more,
    ])  # fmt: skip


def _configs(place: Path, *more: str) -> list[RunConfig]:
    return [_config(place, name, *more) for name in MEMBERS]


def _cohort(
    place: Path,
    under: str,
    configs: Sequence[RunConfig] | None = None,
    watching: Watching | None = None,
    **options: Any,
) -> dict[str, Path]:
    configs = configs or _configs(place)
    folders = {config.name: place / under / config.name for config in configs}
    failed = execute_cohort(configs, list(folders.values()), watching or Watching(), **{"rows": ROWS, **options})
    assert failed == [None] * len(configs)
    return folders


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Path]:
    return _cohort(place, "whole")


@pytest.mark.parametrize("name", MEMBERS)
def test_every_folder_is_that_of_the_run_alone(place: Path, whole: dict[str, Path], name: str) -> None:
    alone = execute(_config(place, name), place / "alone" / name, Watching())
    folder = whole[name]
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    for file in ("config.yaml", "eval/test.jsonl", "eval/summary.json"):
        assert (folder / file).read_bytes() == (alone / file).read_bytes()
    found, wanted = metrics(folder), metrics(alone)
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    adapter, own = (load_file(each / "adapter" / "adapter.safetensors") for each in (folder, alone))
    assert max(gap(adapter[key], own[key]) for key in own) < 1e-4
    record, expected = (json.loads((each / "adapter" / "adapter.json").read_text()) for each in (folder, alone))
    digests = {"sha256", "tensors_sha256"}
    assert {key: record[key] for key in record.keys() - digests} == {
        key: expected[key] for key in expected.keys() - digests
    }
    manifest, other = (json.loads((each / "manifest.json").read_text()) for each in (folder, alone))
    assert manifest["cohort"] == {"members": list(MEMBERS), "rows": ROWS}
    assert manifest.keys() - {"cohort"} == other.keys()
    for key in ("config", "learning_rate", "parameters", "base", "data"):
        assert manifest[key] == other[key]
    for key in ("steps", "tokens", "best_step"):
        assert manifest["training"][key] == other["training"][key]
    assert "tuned" in write_report(folder).read_text()


def test_the_base_is_loaded_once_and_asked_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    generate = runner.generate

    def counting(model: Any, prompts: Any, **options: Any) -> Any:
        asked.extend(options["routes"])
        return generate(model, prompts, **options)

    monkeypatch.setattr(runner, "generate", counting)
    watching = Watching()
    configs = [_config(place, name, "evaluate.max_new_tokens=2") for name in MEMBERS]
    folders = _cohort(place, "counted", configs, watching)
    assert sum("loading" in begun for begun in watching.begun) == 1
    assert asked[:6] == [None] * 6
    assert asked[6:].count(None) == 0  # all adapters, and nothing but them, in one batch
    assert sorted(map(str, asked[6:])) == sorted(f"member-{i}" for i in range(3) for _ in range(6))
    rows = [[row for row in read_rows(f / "eval/test.jsonl") if row["adapter"] is None] for f in folders.values()]
    assert [len(each) for each in rows] == [6, 6, 6]


MOMENTS = [("loading", 0), ("evaluating the base", 3), ("training", 5), ("tuned models", 0), ("tuned models", 3)]


@pytest.mark.parametrize(("what", "after"), MOMENTS)
def test_a_cohort_interrupted_anywhere_ends_as_the_one_left_alone(
    place: Path, whole: dict[str, Path], what: str, after: int
) -> None:
    under = f"cut-{what[-5:].strip()}-{after}"
    with pytest.raises(Stopped):
        _cohort(place, under, watching=Watching(what, after))
    watching = Watching()
    cut = _cohort(place, under, watching=watching)
    assert sum("going on with the run" in note for note in watching.notes) == 3
    assert sum("step-4'" in note for note in watching.notes) == (3 if what == "training" else 0)
    for name, folder in cut.items():
        for file in ("adapter/adapter.safetensors", "eval/test.jsonl", "eval/summary.json"):
            assert (folder / file).read_bytes() == (whole[name] / file).read_bytes(), file
        assert metrics(folder) == metrics(whole[name])
        assert same(checkpoints(folder), checkpoints(whole[name]))


def test_complete_runs_are_left_alone_and_the_others_finished(place: Path, whole: dict[str, Path]) -> None:
    with pytest.raises(OutputError, match="all runs of this cohort are complete"):
        _cohort(place, "whole")
    shutil.copytree(place / "whole", place / "left")
    (place / "left" / "series" / "manifest.json").unlink()  # killed among the manifests
    before = {path: path.stat().st_mtime_ns for path in (place / "left" / "lora").rglob("*")}
    watching = Watching()
    _cohort(place, "left", watching=watching)
    assert (place / "left" / "series" / "manifest.json").exists()
    assert before == {path: path.stat().st_mtime_ns for path in (place / "left" / "lora").rglob("*")}
    assert [note for note in watching.notes if "going on" in note] == [
        f"going on with the run in '{place / 'left' / 'series'}'"
    ]
    (place / "left" / "series" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        _cohort(place, "left", force=True)
    assert (place / "left" / "lora" / "manifest.json").exists()  # nothing was cleared before all could be
    (place / "left" / "series" / "mine.txt").unlink()
    again = _cohort(place, "left", force=True)
    assert same(checkpoints(again["lora"]), checkpoints(whole["lora"]))
    with pytest.raises(OutputError, match="holds a complete run"):
        _cohort(place, "left", _configs(place, "train.warmup=3"))


def test_progress_tells_the_losses_and_the_tokens_of_all_a_second(place: Path) -> None:
    said: list[str] = []

    class Listening(Watching):
        def advance(self, amount: int, note: str = "") -> None:
            said.append(note)
            super().advance(amount, note)

    _cohort(place, "told", watching=Listening())
    trained = [match for match in (re.fullmatch(r"losses .* to .*, (\d+) tokens/s", note) for note in said) if match]
    assert len(trained) == sum(len(_losses(place / "told" / name)) for name in MEMBERS)
    assert all(int(match[1]) > 0 for match in trained)


def test_one_that_fails_leaves_its_error_and_the_others_are_complete(place: Path, whole: dict[str, Path]) -> None:
    wild = _config(place, "lora", "name=wild", "train.learning_rate=1e38", "train.max_grad_norm=null")
    configs = [*_configs(place), wild]
    folders = [place / "wild" / config.name for config in configs]
    for _ in range(2):  # the second time, all that remains is said
        failed = execute_cohort(configs, folders, Watching(), rows=8)
        assert failed[:3] == [None] * 3
        assert failed[3] is not None
        assert "at learning rate 1e+38 in step 2" in failed[3]
    assert json.loads((folders[3] / "failed.json").read_text())["step"] == 2
    assert not (folders[3] / "manifest.json").exists()
    for config, folder in zip(configs[:3], folders, strict=False):
        found, wanted = (load_file(f / "adapter/adapter.safetensors") for f in (folder, whole[config.name]))
        assert max(gap(found[key], wanted[key]) for key in wanted) < 1e-4
    assert execute_cohort(configs, folders, Watching(), rows=8, force=True)[3] is not None  # --force clears it all


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def test_training_only_and_a_run_that_goes_on_alone(place: Path, whole: dict[str, Path]) -> None:
    with pytest.raises(Stopped):
        _cohort(place, "apart", watching=Watching("training", 5), score=False)
    alone = execute(_config(place, "series"), place / "apart" / "series", Watching(), score=False)
    assert _losses(alone) == pytest.approx(_losses(whole["series"]), rel=1e-5)
    rest = _cohort(place, "apart", score=False)
    assert _losses(rest["lora"]) == pytest.approx(_losses(whole["lora"]), rel=1e-5)
    assert not (rest["lora"] / "eval").exists()


def test_what_is_no_cohort_is_refused_before_anything_is_written(place: Path) -> None:
    configs = _configs(place)
    folders = [place / "never" / config.name for config in configs]
    other = _config(place, "prefix", "model.dtype=float32")
    for given, into, said in (
        ([*configs[:2], other], folders, "model.dtype is 'auto' in 'lora', 'float32' in 'prefix'"),
        (configs, [*folders[:2], folders[0]], "have one folder"),
        (configs, folders[:2], "3 configurations for 2 folders"),
    ):
        with pytest.raises(ConfigError, match=said):
            execute_cohort(given, into, Watching())
    assert not (place / "never").exists()


def test_members_of_another_cohort_are_refused(place: Path) -> None:
    with pytest.raises(Stopped):
        _cohort(place, "other", watching=Watching("training", 5))
    for configs, rows in ((_configs(place)[:2], ROWS), (None, ROWS + 1)):
        with pytest.raises(OutputError, match=f"began in a cohort of lora, series, prefix with {ROWS} rows"):
            _cohort(place, "other", configs, rows=rows)
    with pytest.raises(Stopped):
        execute(_config(place, "lora"), place / "single" / "lora", Watching("training", 3))
    with pytest.raises(OutputError, match="began in no cohort"):
        _cohort(place, "single")
