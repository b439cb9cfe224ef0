"""``report`` of a study that really ran: its files, forgetting, drift against another one, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_adapters.cli import app
from llm_adapters.errors import DataError
from llm_adapters.study.work import work
from tiny_study import begin, study_place, tiny_study
from watching import Watching


def _carried_out(place: Path, name: str, **train: object) -> Path:
    data = tiny_study(place)
    data["run"]["evaluate"]["forgetting"] = str(place / "plain.txt")
    data["run"]["train"] |= train
    folder = begin(place, name, data)
    work(folder, Watching())
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = study_place(tmp_path_factory.mktemp("reports"))
    (place / "plain.txt").write_text("the boat leaves at ten past six and the sea is quiet " * 8)
    return place


@pytest.fixture(scope="module")
def study(place: Path) -> Path:
    """Two methods, two seeds."""
    return _carried_out(place, "one")


def _report(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_study_is_reported_from_what_its_runs_wrote(study: Path, place: Path) -> None:
    assert "report.html" in _report(study)
    text = (study / "report" / "report.md").read_text()
    assert "4 of 4 trials have finished: 2 configurations." in text
    assert "Every configuration was trained with several seeds" in text
    assert "| lora | 2 seeds |" in text
    assert str(place) not in text
    rows = list(csv.DictReader((study / "report" / "tables" / "forgetting.csv").open()))
    measured = [
        json.loads(path.read_text())["forgetting"]["difference"] for path in study.glob("runs/*/manifest.json")
    ]  # fmt: skip
    assert sum(float(row["change"]) for row in rows) / 2 == pytest.approx(sum(measured) / 4)
    assert {row["text"].split(",")[0] for row in rows} == {"plain.txt"}


def test_drift_names_what_was_changed(study: Path, place: Path, tmp_path: Path) -> None:
    other = _carried_out(place, "two", learning_rate=0.5)
    _report(other, "--against", study, "--out", tmp_path / "out", "--without-predictions")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| recipe | train.learning_rate | 0.01 | 0.5 | 4 of 4 |" in text
    assert "| version |" not in text.split("## Accuracy")[0]
    assert "Single predictions are left out" in (tmp_path / "out" / "report.html").read_text()


def test_one_of_its_runs_has_a_report_of_its_own(study: Path) -> None:
    run = next((study / "runs").iterdir())
    assert "## Cost" in _report(run)
    assert "<title>Run " in (run / "report.html").read_text()


def test_what_only_studies_have_is_refused_elsewhere(study: Path) -> None:
    run = next((study / "runs").iterdir())
    with pytest.raises(DataError, match="holds no study"):
        _report(run, "--against", study)


def test_a_file_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        _report(tmp_path / "a.yaml")
