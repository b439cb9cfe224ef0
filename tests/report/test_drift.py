"""Drift: two studies that differ in known ways."""

from pathlib import Path

from llm_adapters.report.collect import Collected, collect
from llm_adapters.report.drift import drift
from llm_adapters.report.table import shown
from report.studies import manifest, write_study

AXES = {"method": ["lora", "series"]}


def _study(folder: Path, level: float, *, draw: int = 0, **changed: object) -> Collected:
    chance = {"lora": 0.5, "series": level}
    return collect(write_study(folder, AXES, lambda point: chance[point["method"]], name="old", draw=draw, **changed))


def _texts(table: object) -> list[list[str]]:
    return [[shown(cell) for cell in row] for row in table.rows]  # type: ignore[attr-defined]


def test_the_same_study_again_shows_nothing(tmp_path: Path) -> None:
    causes, scores = drift(_study(tmp_path / "a", 0.3), _study(tmp_path / "b", 0.3))
    assert (causes.rows, scores.rows, scores.note) == ([], [], "None.")
    assert "nothing changed" in causes.note


def test_causes_and_scores_are_named(tmp_path: Path) -> None:
    config = {**manifest({"method": "lora"})["config"]}
    config["data"] = {**config["data"], "template": "alpaca"}
    config["train"] = {"epochs": 5}
    new = _study(
        tmp_path / "b", 0.6, versions={"torch": "2.14.0", "python": "3.11.2"}, config=config,
        data={"train": "f" * 64, "test": "c" * 64, "encoded": "b" * 64},
    )  # fmt: skip
    causes, scores = drift(_study(tmp_path / "a", 0.3), new)
    rows = _texts(causes)
    assert ["version", "torch", "2.13.0", "2.14.0", "2 of 2"] in rows
    assert ["data", "training data", "a" * 12, "f" * 12, "2 of 2"] in rows
    assert ["template", "template", "plain", "alpaca", "2 of 2"] in rows
    assert ["recipe", "train.epochs", "3", "5", "2 of 2"] in rows
    assert {row[0] for row in rows} == {"version", "data", "template", "recipe"}
    (flagged,) = [row for row in _texts(scores) if row[-1] == "beyond its interval"]
    assert flagged[0] == "series"
    assert "1 scores are beyond" in scores.note


def test_answers_that_changed_within_the_interval_are_counted_not_flagged(tmp_path: Path) -> None:
    _, scores = drift(_study(tmp_path / "a", 0.3), _study(tmp_path / "b", 0.3, draw=1))
    assert {row[-1] for row in _texts(scores)} == {"within"}
    changed = [row[5] for row in _texts(scores)]
    assert all(text.endswith("of 200") and int(text.split()[0]) > 20 for text in changed)


def test_trials_that_only_one_study_has_are_named(tmp_path: Path) -> None:
    new = _study(tmp_path / "b", 0.3)
    fewer = Collected(new.study, new.runs[:1], [])
    causes, _ = drift(_study(tmp_path / "a", 0.3), fewer)
    assert _texts(causes) == [["trial", "series", "finished", "–", ""]]
