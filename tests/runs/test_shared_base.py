"""Several sets in one run; and the base's answers, made once for several runs."""

import json
from pathlib import Path

import pytest

from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import DataError
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.evaluation.suite import Suite
from llm_adapters.report import write_report
from llm_adapters.runs.run import execute, read_config
from llm_adapters.runs.shared_base import base_id
from tiny_folder import sums, tiny_folder
from watching import Watching


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    tiny_folder(folder / "model")
    sums(folder / "train.jsonl", 8)
    sums(folder / "near.jsonl", 5, start=20)
    sums(folder / "far.jsonl", 5, start=90)
    return folder


def _config(place: Path, *more: str) -> RunConfig:
    return read_config(None, [
        f"model.source={place / 'model'}", f"data.train={place / 'train.jsonl'}",
        f"evaluate.data=[{place / 'near.jsonl'}, {place / 'far.jsonl'}]", "evaluate.size=4", "evaluate.seed=0",
        "evaluate.max_new_tokens=3", "adapter.rank=2", "train={batch_size: 4, epochs: 1, warmup: 1}", *more,
    ])  # fmt: skip


def test_the_base_is_asked_once_and_every_run_has_its_rows(place: Path) -> None:
    alone = execute(_config(place), place / "alone", Watching())
    one = execute(_config(place), place / "one", Watching(), base=place / "base")
    for name in ("near.jsonl", "far.jsonl", "summary.json"):
        assert (one / "eval" / name).read_bytes() == (alone / "eval" / name).read_bytes()
    (shared,) = (place / "base").iterdir()
    path = shared / "eval" / "far.jsonl"
    path.write_text(path.read_text().replace('"status": "', '"status": "correct", "was": "'))
    two = execute(_config(place, "seed=1", "train.epochs=2"), place / "two", Watching(), base=place / "base")
    rows = [row for row in read_rows(two / "eval" / "far.jsonl") if row["adapter"] is None]
    assert len(rows) == 4
    assert all("was" in row for row in rows)  # taken over, not asked again
    assert [path.name for path in (place / "base").iterdir()] == [shared.name]


def test_scores_and_means_of_several_sets(place: Path) -> None:
    folder = place / "alone"
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    assert [(score["adapter"], score["benchmark"]) for score in summary["scores"]] == [
        (None, "near"), (None, "far"), ("tuned", "near"), ("tuned", "far")
    ]  # fmt: skip
    assert {mean["adapter"]: mean["sets"] for mean in summary["means"]} == {None: 2, "tuned": 2}
    text = write_report(folder).read_text()
    assert "accuracy on near by" in text
    assert "accuracy on far by" in text


@pytest.mark.parametrize("change", ["evaluate.size=5", "evaluate.seed=1", "evaluate.max_new_tokens=2",
                                    "data.template=alpaca", "model.dtype=bfloat16"])  # fmt: skip
def test_what_changes_the_answers_is_asked_for_itself(place: Path, change: str) -> None:
    ids = []
    for config in (_config(place), _config(place, "seed=5", "evaluate.batch_size=2"), _config(place, change)):
        ids.append(base_id(config, Suite.asked(config.evaluate, config.seed, config.data.template)))
    assert ids[0] == ids[1] != ids[2]


def test_two_sets_of_one_name_are_refused(place: Path) -> None:
    (place / "other").mkdir()
    sums(place / "other" / "near.jsonl", 5)
    config = _config(place, f"evaluate.data=[{place / 'near.jsonl'}, {place / 'other' / 'near.jsonl'}]")
    with pytest.raises(DataError, match="one file"):
        execute(config, place / "refused", Watching())
