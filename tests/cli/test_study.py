"""The command line of studies."""

import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from llm_adapters.cli import app
from llm_adapters.errors import ConfigError
from llm_adapters.study.ledger import Ledger
from tiny_study import study_place, tiny_study


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = study_place(tmp_path_factory.mktemp("cli"))
    (place / "s.yaml").write_text(yaml.safe_dump(tiny_study(place)))
    return place


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["study", *arguments], catch_exceptions=False)


def test_the_plan_is_shown_and_nothing_runs(place: Path) -> None:
    shown = _run("--dry-run", str(place / "s.yaml"), "--out", str(place / "out")).output
    assert "4 runs, 16 steps, 16 rows evaluated" in shown
    assert "512" in shown  # what series trains
    assert not (place / "out").exists()


def test_a_study_runs_and_shows_how_far_it_is(place: Path) -> None:
    out = str(place / "ran")
    done = _run(str(place / "s.yaml"), "--out", out)
    assert "tiny: 4 done, 0 running, 0 waiting, 0 failed" in done.output
    assert "best so far: method=" in _run("status", out).output
    grown = _run(str(place / "s.yaml"), "--out", out, "--set", "axes.seed=[0, 1, 2]")
    assert "tiny: 6 done" in grown.output
    assert "2 runs are new" in grown.output + grown.stderr


def test_mistakes_are_told_before_anything_is_made(place: Path) -> None:
    with pytest.raises(ConfigError, match="names no field"):
        _run(str(place / "s.yaml"), "--set", "axes.sed=[0]", "--out", str(place / "bad"))
    assert not (place / "bad").exists()


def test_the_status_of_a_thousand_runs_takes_a_moment(place: Path) -> None:
    folder = place / "thousand"
    (folder / "runs").mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "many", "objective": "accuracy", "evaluate": True}))
    with Ledger(folder, create=True) as ledger:
        ledger.plan([(f"t{i}", {"seed": str(i)}, {"seed": i}) for i in range(1000)])
        for i in range(0, 1000, 100):
            ledger.record(f"t{i}", "done", "w", seconds=60.0, score=i / 1000)
    began = time.perf_counter()
    shown = _run("status", str(folder)).output
    assert time.perf_counter() - began < 5
    assert "10 done, 0 running, 990 waiting" in shown
    assert "16 h 30 min left" in shown
    assert "best so far: seed=900, accuracy 90.0%" in shown
