"""The command line, interrupted: what it says, its exit codes, and that the same command goes on."""

import json
import shlex
import signal
from pathlib import Path

import pytest

from commands import command
from tiny_folder import tiny_place
from tiny_training import lines_in, metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = (
        "adapter: {rank: 2, dropout: 0.1}\ndata: {train: train.jsonl}\n"
        "train: {batch_size: 4, epochs: 8, learning_rate: 0.01}\n"
        "evaluate: {data: test.jsonl, size: null, max_new_tokens: 4}\n"
    )
    return tiny_place(tmp_path_factory.mktemp("cli"), 40, 8, recipe)


def _rows(folder: Path) -> int:
    return lines_in(folder / "metrics.jsonl")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_line_that_goes_on(place: Path, number: int) -> None:
    out = place / f"stopped-{int(number)}"
    arguments = ["run", "tiny.yaml", "--out", out.name]
    code, said = command(place, *arguments, "--force", until=lambda: _rows(out) >= 5, number=number)
    assert code == 0, said
    last = said.splitlines()[-1]
    step = int(last.split("stopped after step ")[1].split(" of 80")[0])
    assert step >= 5
    assert last.endswith("; to go on: " + shlex.join(["llm-adapters", *arguments]))
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{step}"]

    code, said = command(place, *arguments)
    assert code == 0, said
    assert f"going on from '{out.name}/checkpoints/step-{step}'" in said
    assert json.loads((out / "manifest.json").read_text())["training"]["resumed"] == [step]
    assert [row["step"] for row in metrics(out)] == list(range(1, 81))

    code, said = command(place, *arguments)
    assert (code, said.count("\n")) == (2, 2), said
    assert "holds a complete run" in said
    assert "Traceback" not in said


def test_two_interrupted_runs_are_equal_and_another_configuration_is_refused(place: Path) -> None:
    for name in ("a", "b"):
        out = place / name
        for rows in (10, 30, 60) if name == "a" else (45,):
            code, _ = command(
                place, "train", "tiny.yaml", "--out", name, "--set", "train.checkpoint_every=7",
                until=lambda out=out, rows=rows: _rows(out) >= rows, number=signal.SIGKILL,
            )  # fmt: skip
            assert code == -signal.SIGKILL
        if name == "b":
            code, said = command(place, "train", "tiny.yaml", "--out", name, "--set", "train.batch_size=5")
            assert code == 2
            assert "train.batch_size: 4 there, 5 now" in said
            assert "checkpoint_every" not in said  # which changes nothing about what is trained
        code, said = command(place, "train", "tiny.yaml", "--out", name, "--set", "train.checkpoint_every=7")
        assert code == 0, said
    one, other = ((place / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other
    assert metrics(place / "a") == metrics(place / "b")


def test_ctrl_c_while_evaluating_the_base_stops_at_once(place: Path) -> None:
    out = place / "early"
    eval_file = out / "eval" / "test.jsonl"
    code, said = command(place, "run", "tiny.yaml", "--out", "early", until=eval_file.exists, number=signal.SIGINT)
    assert code == 0, said
    assert "to go on: llm-adapters run tiny.yaml --out early" in said


def test_ctrl_c_elsewhere_is_said(place: Path) -> None:
    """Typer by itself says nothing."""
    code, said = command(place, "train", "tiny.yaml", "--out", "trained", "--set", "train.steps=2")
    assert code == 0, said
    adapter = place / "trained" / "adapter"
    out = place / "evaluation"
    code, said = command(
        place, "evaluate", str(adapter), "--base", "model", "--benchmarks", "test.jsonl", "--out", "evaluation",
        "--max-new-tokens", "60", "--batch-size", "1", until=(out / "eval" / "test.jsonl").exists, number=signal.SIGINT,
    )  # fmt: skip
    assert code == 130, said
    assert said.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("limit", [20_000])
def test_a_full_disk_is_one_message(place: Path, limit: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code, said = command(place, "train", "tiny.yaml", "--out", "full", "--set", "train.checkpoint_every=3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2, said
    assert "step-3' cannot be written: File too large" in said
    assert "Traceback" not in said
    assert list((place / "full" / "checkpoints").iterdir()) == []
    code, said = command(place, "train", "tiny.yaml", "--out", "full", "--set", "train.checkpoint_every=3")
    assert code == 0, said
