"""Evaluating several adapters and their base together on the real bundled model, and going on after a kill."""

import json
import signal
from pathlib import Path

import pytest
import torch

import llm_adapters as la
from commands import command

ROWS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved adapters and a small data file."""
    folder = tmp_path_factory.mktemp("evaluate")
    model, _ = la.load_model()
    for name in ("lora", "prefix"):
        adapter = la.attach(model, la.method(name, **({"tokens": 4} if name == "prefix" else {"rank": 2})), name)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        adapter.save(folder / name)
        la.detach(model)
    rows = [{"instruction": f"What is {i} + 1?", "output": "", "answer": str(i + 1)} for i in range(ROWS)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _arguments(out: str) -> list[str]:
    limits = ["--max-new-tokens", "12", "--batch-size", "4"]
    return ["evaluate", "lora", "prefix", "--benchmarks", "sums.jsonl", *limits, "--out", out]


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_file(folder: Path) -> None:
    code, said = command(folder, *_arguments("whole"))
    assert code == 0, said
    rows = [json.loads(line) for line in (folder / "whole/eval/sums.jsonl").read_text().splitlines()]
    assert [row["adapter"] for row in rows] == [None] * ROWS + ["lora"] * ROWS + ["prefix"] * ROWS
    assert len({row["completion"] for row in rows if row["row"] == 3}) > 1

    written = folder / "cut/eval/sums.jsonl"
    begun = lambda: written.exists() and written.read_text().count("\n") >= 5  # noqa: E731
    code, said = command(folder, *_arguments("cut"), until=begun, number=signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    assert 5 <= written.read_text().count("\n") < 3 * ROWS
    assert not (folder / "cut/manifest.json").exists()
    code, said = command(folder, *_arguments("cut"))
    assert code == 0, said
    assert written.read_bytes() == (folder / "whole/eval/sums.jsonl").read_bytes()
    assert (folder / "cut/manifest.json").exists()

    data = (folder / "sums.jsonl").read_text()
    (folder / "sums.jsonl").write_text(data.replace("What", "Now what"))
    code, said = command(folder, *_arguments("cut"))
    (folder / "sums.jsonl").write_text(data)
    assert code == 2
    assert "differs in suites" in said


def test_another_evaluation_does_not_go_into_the_same_folder(folder: Path) -> None:
    (folder / "taken/eval").mkdir(parents=True)
    (folder / "taken/evaluation.json").write_text("{}")
    code, said = command(folder, *_arguments("taken"))
    assert (code, "Traceback" in said) == (2, False)
    assert "another evaluation" in said
