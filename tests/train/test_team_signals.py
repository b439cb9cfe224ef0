"""Commands of two processes that are told to stop: both do, after the same step, and go on with the same bits."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llm_adapters as la
import llm_adapters.runs.follow  # once here, not in every child
from team_of import commanded, free_port
from tiny_folder import tiny_place
from tiny_training import lines_in, metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = (
        "adapter: {rank: 2, dropout: 0.1}\ndata: {train: train.jsonl, validation: 8}\n"
        "train: {batch_size: 4, epochs: 4, learning_rate: 0.01}\n"
        "evaluate: {data: test.jsonl, size: null, max_new_tokens: 60, batch_size: 1}\n"
    )
    return tiny_place(tmp_path_factory.mktemp("distributed"), 40, 12, recipe)


def _to_go_on(said: list[str]) -> tuple[str, list[str]]:
    """What the leader says at its end, the others being silent: what happened, and what is to be typed."""
    what, _, typed = said[0].splitlines()[-1].partition("; to go on: llm-adapters ")
    assert said[1] == ""
    assert typed.endswith(", behind the launcher")
    return what, shlex.split(typed.removesuffix(", behind the launcher"))


def _equal(folder: Path, to: Path) -> None:
    one, other = ((run / "adapter/adapter.safetensors").read_bytes() for run in (folder, to))
    assert one == other
    assert metrics(folder) == metrics(to)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_signals_cost_no_bit_and_the_leader_says_what_to_type(place: Path, way: str) -> None:
    whole, cut = place / f"whole-{way}", place / f"cut-{way}"
    arguments = ["train", "tiny.yaml", "--set", f"train.distributed={way}", "--out"]
    codes, _, errors = commanded(place, [*arguments, whole.name])
    assert codes == [0, 0], errors

    typed, stops = [*arguments, cut.name], [0]
    both, term = (0, 1), signal.SIGTERM  # launchers hand a signal on to all
    one = ((1,), term) if way == "ddp" else ((0,), term)
    for to, number in ((both, term), one, (both, signal.SIGINT)):
        written = lines_in(cut / "metrics.jsonl") + 4
        codes, _, errors = commanded(
            place, typed, until=lambda rows=written: lines_in(cut / "metrics.jsonl") >= rows, to=to, number=number
        )
        assert codes == [0, 0], errors
        what, typed = _to_go_on(errors)
        stopped = re.fullmatch(r"stopped after step (\d+) of 32", what)
        assert stopped, what
        stops.append(int(stopped[1]))
        assert max(row["step"] for row in metrics(cut)) == stops[-1] > stops[-2]
        assert (cut / f"checkpoints/step-{stops[-1]}").is_dir()

    codes, _, errors = commanded(place, typed)
    assert codes == [0, 0], errors
    assert json.loads((cut / "manifest.json").read_text())["training"]["resumed"] == stops[1:]
    _equal(cut, whole)


def test_a_signal_while_the_leader_evaluates_reaches_those_that_wait(place: Path) -> None:
    whole, cut = place / "whole", place / "cut"
    arguments = ["run", "tiny.yaml", "--set", "train.epochs=1", "--out"]
    codes, _, errors = commanded(place, [*arguments, whole.name])
    assert codes == [0, 0], errors

    typed, answers, rows = [*arguments, cut.name], cut / "eval/test.jsonl", lines_in(whole / "eval/test.jsonl") // 2
    # Before training all are signalled, then one that waits; after it all again.
    for at, to in ((1, (0, 1)), (2, (1,)), (rows + 1, (0, 1))):
        written = max(at, lines_in(answers) + 1)
        codes, _, errors = commanded(place, typed, until=lambda lines=written: lines_in(answers) >= lines, to=to)
        assert codes == [0, 0], errors
        what, typed = _to_go_on(errors)
        assert re.fullmatch(r"stopped( after step \d+ of 8)?", what)

    codes, _, errors = commanded(place, typed)
    assert codes == [0, 0], errors
    assert (cut / "eval/summary.json").read_text() == (whole / "eval/summary.json").read_text()
    _equal(cut, whole)


@pytest.mark.slow
def test_torchrun_hands_sigterm_on(place: Path) -> None:
    source, arguments = str(Path(la.__file__).parents[1]), ["train", "tiny.yaml", "--out"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
         "-m", "llm_adapters", *arguments, "launched"],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while lines_in(place / "launched/metrics.jsonl") < 5:
        assert launcher.poll() is None
        time.sleep(0.002)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate()[1]
    assert launcher.returncode == 1  # its own, with a traceback
    step = re.findall(r"stopped after step (\d+) of 32; to go on: llm-adapters train tiny.yaml --out launched,", said)
    assert len(step) == 1, said
    assert (place / f"launched/checkpoints/step-{step[0]}").is_dir()
    for out in ("launched", "whole-launched"):
        codes, _, errors = commanded(place, [*arguments, out])
        assert codes == [0, 0], errors
    _equal(place / "launched", place / "whole-launched")
