"""``llm-adapters cohort``: what it says and leaves, and its mistakes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forks import ended, forked
from llm_adapters.cli import app, main
from llm_adapters.errors import ConfigError, TrainingError
from tiny_folder import tiny_place
from tiny_training import metrics


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
    code, said = _signalled(place, _arguments(place, "killed", *more), out, rows=5, number=signal.SIGTERM)
    assert code == 0, said
    assert "stopped after step" in said
    assert "to go on: llm-adapters cohort" in said
    code, said = _signalled(place, _arguments(place, "killed", *more), out, rows=20, number=signal.SIGKILL)
    assert code == -signal.SIGKILL
    done = CliRunner().invoke(app, _arguments(place, "killed", *more), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, _arguments(place, "undisturbed", *more), catch_exceptions=False)
    for name in ("one", "two"):
        files = [place / side / name / "adapter" / "adapter.safetensors" for side in ("killed", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert metrics(out / name) == metrics(place / "undisturbed" / name)


def _signalled(place: Path, arguments: list[str], out: Path, *, rows: int, number: int) -> tuple[int, str]:
    """Exit code and standard error of the command, which gets a signal when it has written so many rows."""
    said = place / "said.txt"

    def command() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["llm-adapters", *arguments]
        main()

    child = forked(command)
    path = out / "two" / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < rows:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), said.read_text()
        time.sleep(0.002)
    os.kill(child, number)
    return ended(child), said.read_text()
