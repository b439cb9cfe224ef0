"""Evaluations that are cut off – by kills, a full disk, a damaged file – and gone on with."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import llm_adapters as la
from forks import ended, forked
from letters import letter_tokenizer
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.errors import AdapterError, DataError, OutputError
from llm_adapters.evaluation import runner
from llm_adapters.evaluation.leaks import TrainingData
from llm_adapters.evaluation.protocols import get_protocol
from llm_adapters.evaluation.runner import decoded_alone
from llm_adapters.evaluation.suite import Suite
from llm_adapters.evaluation.task import get_task
from llm_adapters.generate import generate
from llm_adapters.runs.evaluation import common_template, evaluate_targets, read_targets
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


def _evaluate(place: Path, out: Path, names: tuple[str, ...] = ("lora", "prefix"), *, dtype: str | None = None) -> None:
    targets = read_targets([str(place / name) for name in names], str(place / "base"), with_base=True)
    suites = [Suite.of(str(place / "sums.jsonl"), 20, 0, "plain", protocol) for protocol in ("standard", "paper")]
    evaluate_targets(targets, suites, SETTINGS, out, Silent(), dtype=dtype)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir()}


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """An evaluation that nothing disturbed."""
    process = forked(lambda: _evaluate(place, place / "whole"))
    assert ended(process) == 0
    return place / "whole"


def test_ten_kills_at_random_points_change_nothing(place: Path, whole: Path, tmp_path: Path) -> None:
    expected, out, chance = _files(whole), tmp_path / "out", random.Random(3)
    started = time.monotonic()
    process = forked(lambda: _evaluate(place, tmp_path / "timed"))
    os.waitpid(process, 0)
    duration = time.monotonic() - started
    lengths = []
    for _ in range(10):
        process = forked(lambda: _evaluate(place, out))
        time.sleep(chance.uniform(0.1, 0.5) * duration)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if (out / "manifest.json").exists():  # it was quicker than the kill: whole, and the next begins anew
            assert _files(out) == expected
            shutil.rmtree(out)
        lengths.append(sum(path.read_text().count("\n") for path in out.glob("eval/*.jsonl")))
    assert len(set(lengths)) > 2, "the kills came before anything was written"
    process = forked(lambda: _evaluate(place, out))
    assert ended(process) == 0
    assert _files(out) == expected


def test_a_full_disk_leaves_whole_lines_to_go_on_from(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def starved() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        try:
            _evaluate(place, out)
        except OutputError as failure:
            os._exit(9 if "sums" in str(failure) and "asks only what is missing" in failure.mend else 8)

    process = forked(starved)
    assert ended(process) == 9
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


def test_what_another_release_judged_is_judged_again(place: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _evaluate(place, out)
    path = out / "eval/sums.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "status": "unparsed", "answer": None}) + "\n" for row in rows))
    _evaluate(place, out)
    assert _files(out) == _files(whole)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts every call of the engine got."""
    counts: list[int] = []

    def counting(model: Any, prompts: Any, **how: Any) -> Any:
        counts.append(len(prompts))
        return generate(model, prompts, **how)

    monkeypatch.setattr(runner, "generate", counting)
    return counts


def test_an_adapter_may_be_added_and_nothing_is_asked_twice(
    place: Path, whole: Path, tmp_path: Path, asked: list[int]
) -> None:
    out = tmp_path / "out"
    _evaluate(place, out, ("lora",))
    _evaluate(place, out)
    assert asked == [2 * 2 * 20, 2 * 20]  # base and lora under two prompts, then prefix
    assert _files(out) == _files(whole)
    with pytest.raises(OutputError, match="differs in targets"):
        _evaluate(place, out, ("prefix",))


def test_one_prompt_under_two_protocols_is_answered_once(place: Path, tmp_path: Path, asked: list[int]) -> None:
    def suites(*protocols: str) -> list[Suite]:
        return [Suite.of(str(place / "sums.jsonl"), 6, 0, "paper-eval", protocol) for protocol in protocols]

    targets = read_targets([str(place / "lora")], str(place / "base"), with_base=False)
    evaluate_targets(targets, suites("standard", "paper"), SETTINGS, tmp_path / "both", Silent())
    assert asked == [6]
    evaluate_targets(targets, suites("standard"), SETTINGS, tmp_path / "alone", Silent())
    # What a protocol reads does not depend on who reads along, nor on which rows a kill has left.
    both, alone = ((tmp_path / name / "eval/sums.jsonl").read_text() for name in ("both", "alone"))
    assert both == alone
    first, *others = both.splitlines(keepends=True)
    (tmp_path / "both/eval/sums.jsonl").write_text(first[:30] + "\n" + "".join(others))
    evaluate_targets(targets, suites("standard", "paper"), SETTINGS, tmp_path / "both", Silent())
    assert asked == [6, 6, 1]
    assert (tmp_path / "both/eval/sums.jsonl").read_text() == alone
    # Rows carry their number in the whole file, so that samples of different size can be paired.
    rows = [json.loads(line) for line in alone.splitlines()]
    assert {row["row"] for row in rows} <= set(Suite.of(str(place / "sums.jsonl"), 15, 0, "plain").numbers)
    assert all(f"What is {row['row']} and" in row["question"] for row in rows)


def test_choices_by_likelihood_go_on_with_the_same_digits(place: Path, tmp_path: Path) -> None:
    lines = [
        {
            "instruction": f"Which is {i}?\n\nSolution1: {i} apples\n\nSolution2: {i + 1} plums\n\n"
            "Answer format: solution1/solution2",
            "output": "",
            "answer": f"solution{1 + i % 2}",
        }
        for i in range(10)
    ]
    data = place / "piqa.json"
    data.write_text(json.dumps(lines))
    examples = load_source(str(data), split="test")
    suite = Suite(get_task("piqa"), examples, range(10), get_template("plain"), get_protocol("likelihood"))
    targets = read_targets([str(place / "lora")], str(place / "base"), with_base=True)
    [base, tuned] = evaluate_targets(targets, [suite], SETTINGS, tmp_path / "out", Silent())
    assert (base.total, base.unparsed, tuned.total) == (10, 0, 10)
    path = tmp_path / "out/eval/piqa.likelihood.jsonl"
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        first, second = (
            value / len(text)
            for value, text in zip(
                row["log_likelihoods"], (f"{row['row']} apples", f"{row['row'] + 1} plums"), strict=True
            )
        )
        assert row["answer"] == ("solution1" if first > second else "solution2")
    path.write_text("".join(line for i, line in enumerate(text.splitlines(keepends=True)) if i not in (3, 14)))
    evaluate_targets(targets, [suite], SETTINGS, tmp_path / "out", Silent())
    assert path.read_text() == text
    with pytest.raises(DataError, match="no options"):
        Suite.of(str(place / "sums.jsonl"), 6, 0, "plain", "likelihood")


def test_runs_with_different_templates_are_not_asked_alike_unasked(place: Path, tmp_path: Path) -> None:
    for name, template in (("a", "plain"), ("b", "alpaca")):
        shutil.copytree(place / "lora", tmp_path / name / "adapter")
        config = {
            "model": {"source": str(place / "base"), "dtype": "float32"}, "seed": 3,
            "data": {"train": "word-problems", "size": 5, "template": template},
        }  # fmt: skip
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    targets = read_targets([str(tmp_path / "a" / "adapter"), str(tmp_path / "b")], None, with_base=True)
    assert [target.name for target in targets] == [None, "a", "b"]
    assert targets[1].training == TrainingData("word-problems", 5, 3)
    with pytest.raises(AdapterError, match="a: plain, b: alpaca"):
        common_template(targets)
    assert common_template(targets[:2]) == "plain"


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


def test_mistakes_of_targets_and_rows_are_told_before_anything_is_asked(place: Path, tmp_path: Path) -> None:
    lora = str(place / "lora")
    with pytest.raises(AdapterError, match="'lora' is given twice"):
        read_targets([lora, lora], None, with_base=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        _evaluate(place, tmp_path / "file" / "out")
    rows = [{"instruction": question, "answer": "1"} for question in ("Short?", "Is this long? " * 100)]
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    targets = read_targets([lora], str(place / "base"), with_base=False)
    suites = [Suite.of(str(long), None, 0, "plain")]
    with pytest.raises(DataError, match=r"1 prompts(?s:.)*row 2 of long"):
        evaluate_targets(targets, suites, SETTINGS, tmp_path / "out", Silent())
    assert (tmp_path / "out/eval/long.jsonl").read_text() == ""


def test_texts_that_the_batch_changed_are_counted(place: Path, tmp_path: Path) -> None:
    """In bfloat16 some are decoded again by themselves; a text that is not what comes out so counts as changed."""
    _evaluate(place, tmp_path / "short", dtype="bfloat16")
    counted = json.loads((tmp_path / "short" / "manifest.json").read_text())["alone"]
    assert counted["rows"] == 16
    assert 0 <= counted["differ"] <= 16
    _evaluate(place, tmp_path / "exact")
    assert json.loads((tmp_path / "exact" / "manifest.json").read_text())["alone"] is None

    model, tokenizer = la.load_model(str(place / "base"))
    for name in ("lora", "prefix"):
        la.attach(model, place / name, name)
    suites = [Suite.of(str(place / "sums.jsonl"), 20, 0, "plain", protocol) for protocol in ("standard", "paper")]
    evaluated = tmp_path / "exact" / "eval"
    count = partial(decoded_alone, model, tokenizer, suites, settings=SETTINGS, folder=evaluated)
    assert count(rows=120) == {"rows": 120, "differ": 0}
    path = evaluated / "sums.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:3]:
        line["completion"] += "?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert count(rows=120) == {"rows": 120, "differ": 3}
