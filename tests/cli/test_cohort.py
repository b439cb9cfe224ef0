"""``llm-adapters cohort``: what it says and leaves, and its mistakes."""

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import command
from llm_adapters.cli import app
from llm_adapters.errors import ConfigError, TrainingError
from tiny_folder import tiny_place
from tiny_training import lines_in, metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_place(tmp_path_factory.mktemp("cli"), 24, 4)
    for name, adapter in (("one", "{rank: 2}"), ("two", "{method: prefix, tokens: 3}")):
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nmodel: {{source: {folder}/model}}\nadapter: {adapter}\n"
            f"data: {{train: {folder}/train.jsonl}}\n"
            "train: {batch_size: 4, epochs: 2, learning_rate: 0.01, checkpoint_every: 3}\n"
            f"evaluate: {{data: {folder}/test.jsonl, size: null, max_new_tokens: 3}}\n"
        )
    return folder


def _arguments(place: Path, out: str, *more: str) -> list[str]:
    return ["cohort", str(place / "one.yaml"), str(place / "two.yaml"), "--out", str(place / out), *more]


def test_every_run_has_its_folder_and_its_report(place: Path) -> None:
    done = CliRunner().invoke(app, _arguments(place, "runs", "--rows", "4"), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for name in ("one", "two"):
        assert f"report: {place / 'runs' / name / 'report.md'}" in done.output
        manifest = json.loads((place / "runs" / name / "manifest.json").read_text())
        assert manifest["cohort"] == {"members": ["one", "two"], "rows": 4}
        assert manifest["training"]["steps"] == 12
        assert "a cohort of 2" in (place / "runs" / name / "report.md").read_text()


def test_train_only(place: Path) -> None:
    done = CliRunner().invoke(app, _arguments(place, "trained", "--train-only"), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not (place / "trained" / "one" / "eval").exists()


def test_two_of_one_name(place: Path) -> None:
    with pytest.raises(ConfigError, match="two configurations have the name 'same'"):
        CliRunner().invoke(app, _arguments(place, "never", "--set", "name=same"), catch_exceptions=False)
    assert not (place / "never").exists()


def test_failures_are_told_at_the_end(place: Path) -> None:
    more = ["--set", "train.learning_rate={prefix: 0.01, lora: 1e38}", "--set", "train.max_grad_norm=null"]
    with pytest.raises(TrainingError, match=r"(?s)1 of 2 runs failed, the others are complete\none: .*in step 2"):
        CliRunner().invoke(app, _arguments(place, "wild", *more), catch_exceptions=False)
    assert (place / "wild" / "two" / "report.md").exists()


def test_a_signal_stops_with_a_line_that_goes_on_and_a_kill_loses_little(place: Path) -> None:
    out = place / "killed"
    more = ["--set", "train.epochs=8", "--train-only"]
    typed, log = _arguments(place, "killed", *more), out / "two" / "metrics.jsonl"
    code, said = command(place, *typed, until=lambda: lines_in(log) >= 5, number=signal.SIGTERM)
    assert code == 0, said
    assert "stopped after step" in said
    assert "to go on: llm-adapters cohort" in said
    code, said = command(place, *typed, until=lambda: lines_in(log) >= 20, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = CliRunner().invoke(app, _arguments(place, "killed", *more), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, _arguments(place, "undisturbed", *more), catch_exceptions=False)
    for name in ("one", "two"):
        files = [place / side / name / "adapter" / "adapter.safetensors" for side in ("killed", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert metrics(out / name) == metrics(place / "undisturbed" / name)
