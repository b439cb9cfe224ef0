"""The command line in two processes: one output, one set of files, one message."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import llm_adapters
import llm_adapters.runs.follow  # once here, not in every child
from llm_adapters.cli import main
from team_of import ended, free_port, started
from tiny_folder import tiny_place
from tiny_training import metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = (
        "adapter: [{rank: 2}, {method: prefix, tokens: 3}, {method: prompt, tokens: 2}]\n"
        "data: {train: train.jsonl, validation: 8}\n"
        "train: {batch_size: 4, epochs: 2, learning_rate: 0.01}\n"
        "evaluate: {data: test.jsonl, size: null, max_new_tokens: 4}\n"
    )
    return tiny_place(tmp_path_factory.mktemp("cli"), 40, 8, recipe)


def _command(place: Path, *arguments: str, size: int = 2) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard output and standard error of a command in so many processes."""

    def work(rank: int) -> None:
        os.chdir(place)
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["llm-adapters", *arguments]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    codes = ended(started(work, size))
    return (codes, *([(place / f"{name}-{rank}").read_text() for rank in range(size)] for name in ("out", "error")))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    """A complete run in one process."""
    codes, _, _ = _command(place, "run", "tiny.yaml", "--out", "one", size=1)
    assert codes == [0]
    return place / "one"


def test_train_and_run_give_what_one_process_gives_and_say_it_once(place: Path, one: Path) -> None:
    expected = [row.get("loss", row.get("validation_loss")) for row in metrics(one)]
    for out, command, way in (("ddp", "run", "auto"), ("fsdp", "train", "fsdp")):
        codes, said, errors = _command(place, command, "tiny.yaml", "--out", out, "--set", f"train.distributed={way}")
        assert codes == [0, 0], errors
        assert said[0].count(f"adapter: {out}/adapter") == 1
        assert "16 steps" in errors[0]
        assert (said[1], errors[1]) == ("", "")
        found = [row.get("loss", row.get("validation_loss")) for row in metrics(place / out)]
        assert found == pytest.approx(expected, rel=1e-5)
        assert {path.name for path in (place / out).iterdir()} == {
            path.name for path in (place / "one").iterdir() if command == "run" or path.name != "eval"
        }
        bases = [json.loads((place / of / "adapter/adapter.json").read_text())["base"] for of in ("one", out)]
        assert bases[0] == bases[1]
    assert (place / "ddp/eval/summary.json").read_text() == (place / "one/eval/summary.json").read_text()


@pytest.mark.usefixtures("one")
def test_mistakes_are_said_once_by_the_leader(place: Path) -> None:
    for arguments, words in (
        (("train", "tiny.yaml", "--out", "one"), "'one' holds a complete run"),
        (("train", "tiny.yaml", "--set", "train.epochs=-1"), "train.epochs"),
        (("run", "tiny.yaml", "--set", "train.distributed=fsdp", "--out", "x"), "llm-adapters train, then"),
        (("evaluate", "model", "--benchmarks", "test.jsonl"), "one process"),
        (("cohort", "tiny.yaml", "--out", "x"), "'cohort' runs in one process"),
        (
            (
                "train",
                "tiny.yaml",
                "--set",
                "train.distributed=fsdp",
                "--set",
                "model.quantization=bnb-nf4",
                "--out",
                "x",
            ),
            "fsdp cannot shard a base that is quantised (bnb-nf4)" if find_spec("bitsandbytes") else "bitsandbytes",
        ),
    ):
        codes, _, errors = _command(place, *arguments)
        assert codes == [2, 2]
        assert words in errors[0]
        assert errors[1] == ""
    assert not (place / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc-per-node 2 --master-port PORT -m llm_adapters",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --main_process_port PORT -m llm_adapters",
    ],
)
def test_under_the_launchers_themselves(place: Path, launcher: str) -> None:
    words = launcher.replace("PORT", str(free_port())).split()
    out, source = words[0].partition(".")[0], str(Path(llm_adapters.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", *words, "train", "tiny.yaml", "--out", out],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("16 steps") == 1
    assert done.stdout.count("report: ") == 1
    assert len([row for row in metrics(place / out) if "loss" in row]) == 16
