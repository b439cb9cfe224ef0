"""Evaluations that are cut off – by kills, a full disk, a damaged file – and gone on with."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llm_adapters as la
from letters import letter_tokenizer
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.errors import AdapterError, OutputError
from llm_adapters.evaluation.suite import Suite
from llm_adapters.study.evaluation import evaluate_targets, read_targets
from tiny import tiny_model

ROWS = 30
SETTINGS = EvaluateSection(batch_size=4, max_new_tokens=24)


class Silent:
    """An observer that says nothing."""

    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two adapters of it, and a data file."""
    place = tmp_path_factory.mktemp("evaluation")
    model = tiny_model("llama")
    model.save_pretrained(place / "base")
    letter_tokenizer().save_pretrained(place / "base")
    model, _ = la.load_model(str(place / "base"))
    for name in ("lora", "prefix"):
        adapter = la.attach(model, la.method(name), name)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        adapter.save(place / name)
        la.detach(model, name)
    rows = [{"instruction": f"What is {i} and {i % 7}?", "output": "", "answer": str(i)} for i in range(ROWS)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def _evaluate(place: Path, out: Path, names: tuple[str, ...] = ("lora", "prefix")) -> None:
    targets = read_targets([str(place / name) for name in names], str(place / "base"), with_base=True)
    suites = [Suite.of(str(place / "sums.jsonl"), 20, 0, "plain", protocol) for protocol in ("standard", "paper")]
    evaluate_targets(targets, suites, SETTINGS, out, Silent())


def _child(act: Callable[[], None]) -> int:
    """Start a process that acts and ends; gives its id. A fork starts at once, where a new Python takes seconds."""
    process = os.fork()
    if process == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return process


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir()}


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """An evaluation that nothing disturbed."""
    process = _child(lambda: _evaluate(place, place / "whole"))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return place / "whole"


def test_ten_kills_at_random_points_change_nothing(place: Path, whole: Path, tmp_path: Path) -> None:
    expected, out, chance = _files(whole), tmp_path / "out", random.Random(3)
    started = time.monotonic()
    process = _child(lambda: _evaluate(place, tmp_path / "timed"))
    os.waitpid(process, 0)
    duration = time.monotonic() - started
    lengths = []
    for _ in range(10):
        process = _child(lambda: _evaluate(place, out))
        time.sleep(chance.uniform(0.1, 0.45) * duration)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if (out / "manifest.json").exists():  # it was quicker than the kill: whole, or not there
            assert _files(out) == expected
            break
        lengths.append(sum(path.read_text().count("\n") for path in out.glob("eval/*.jsonl")))
    assert len(set(lengths)) > 2, "the kills came before anything was written"
    process = _child(lambda: _evaluate(place, out))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert _files(out) == expected


def test_a_full_disk_leaves_whole_lines_to_go_on_from(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def starved() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        try:
            _evaluate(place, out)
        except OSError:
            os._exit(9)

    process = _child(starved)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert not (out / "manifest.json").exists()
    assert sum(path.read_text().count("\n") for path in out.glob("eval/*.jsonl")) > 0
    _evaluate(place, out)
    assert _files(out) == _files(whole)


def test_a_damaged_line_is_asked_again(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _evaluate(place, out)
    lines = (out / "eval/sums.jsonl").read_text().splitlines(keepends=True)
    (out / "eval/sums.jsonl").write_text("".join([*lines[:5], lines[5][:40] + "\n", *lines[6:]]))
    _evaluate(place, out)
    assert _files(out) == _files(whole)


def test_an_adapter_may_be_added_and_nothing_is_asked_twice(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _evaluate(place, out, ("lora",))
    before = (out / "eval/sums.jsonl").stat()
    _evaluate(place, out)
    assert _files(out) == _files(whole)
    assert (out / "eval/sums.jsonl").stat().st_ino != before.st_ino
    with pytest.raises(OutputError, match="differs in targets"):
        _evaluate(place, out, ("prefix",))


def test_one_prompt_under_two_protocols_is_answered_once(place: Path, tmp_path: Path) -> None:
    targets = read_targets([str(place / "lora")], str(place / "base"), with_base=False)
    suites = [Suite.of(str(place / "sums.jsonl"), 6, 0, "paper-eval", protocol) for protocol in ("standard", "paper")]
    steps: list[int] = []
    observer = Silent()
    observer.advance = lambda amount, _note="": steps.append(amount)  # type: ignore[method-assign]
    evaluate_targets(targets, suites, SETTINGS, tmp_path / "out", observer)
    by_protocol = [
        [json.loads(line) for line in (tmp_path / "out/eval" / suite.file).read_text().splitlines()] for suite in suites
    ]
    assert [row["tokens"] for row in by_protocol[0]] == [row["tokens"] for row in by_protocol[1]]
    assert sum(steps) == 12
    # Rows carry their number in the whole file, so that samples of different size can be paired.
    larger = Suite.of(str(place / "sums.jsonl"), 15, 0, "plain")
    assert {row["row"] for row in by_protocol[0]} <= set(larger.numbers)
    assert all(f"What is {row['row']} and" in row["question"] for row in by_protocol[0])


def test_targets_that_are_none_are_named(place: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("name: begun\n")
    for given, message in (
        (tmp_path / "begun", "training has not ended"),
        (tmp_path, "neither a run nor an adapter nor a model"),
        (place / "lorra", "lora"),
    ):
        with pytest.raises(AdapterError, match=message):
            read_targets([str(given)], None, with_base=True)
