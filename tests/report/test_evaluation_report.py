"""The report of an evaluation, from rows whose counts are known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_adapters.errors import DataError
from llm_adapters.evaluation.score import means, score, write_summary
from llm_adapters.report import write_evaluation_report

SETS, PROTOCOLS, MODELS = ("gsm8k", "svamp"), ("standard", "paper"), (None, "lora")
MANIFEST = {
    "targets": [[None, "tiny", ""], ["lora", "tiny", "abc"]],
    "suites": [["gsm8k", "standard", "plain", ""], ["gsm8k", "paper", "paper-eval", ""]],
    "settings": {"beams": True, "max_new_tokens": None}, "dtype": "float32",
    "adapters": {"lora": {
        "methods": [{"method": "lora"}], "parameters": 1234,
        "training": {"source": "math", "size": 704, "seed": 0, "held_out": 64},
    }},
    "versions": {"torch": "2"}, "hardware": {"device": "cpu", "threads": 2}, "code": "c" * 64,
}  # fmt: skip


def _rows(benchmark: str, protocol: str, model: str | None, correct: int) -> list[dict[str, Any]]:
    """100 rows: the first ``correct`` are right, the last 7 unparsed, the last 3 cut; the first 20 leaked."""
    return [
        {
            "adapter": model, "benchmark": benchmark, "protocol": protocol, "row": i, "question": f"SECRET {i}",
            "gold": "1", "completion": "x", "answer": "1", "tokens": 5, "stopped": i < 97, "leaked": i < 20,
            "status": "correct" if i < correct else "wrong" if i < 93 else "unparsed",
        }
        for i in range(100)
    ]  # fmt: skip


def _folder(
    path: Path, *, models: Sequence[str | None] = MODELS, manifest: dict[str, Any] = MANIFEST, **changed: Any
) -> Path:
    (path / "eval").mkdir()
    scores, files = [], []
    for benchmark in SETS:
        for protocol in PROTOCOLS:
            rows = [row for model in models for row in _rows(benchmark, protocol, model, 10 if model is None else 40)]
            rows = [{**row, **changed} for row in rows]
            (path / "eval" / f"{benchmark}.{protocol}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            scores += [score(rows, benchmark, protocol, model) for model in models]
            files.append(rows)
    write_summary(scores, means(files), path / "eval" / "summary.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_every_figure_stands_in_its_place_and_no_question_does(tmp_path: Path) -> None:
    text = write_evaluation_report(_folder(tmp_path), beside="LLaMA-7B").read_text()
    assert "| lora | lora | 1,234 | math, 704 rows, 64 of them held out, seed 0 |" in text
    base = "10.0 (5.5–17.4) | 7.0 | 3.0 | 0.0 (0.0–4.6) of 80 |"
    tuned = "40.0 (30.9–49.8) | 7.0 | 3.0 | 25.0 (16.8–35.5) of 80 |"
    assert f"| gsm8k (100) | base | {base} {base}  |" in text
    assert f"| gsm8k (100) | lora | {tuned} {tuned} 37.5 |" in text
    assert f"| svamp (100) | lora | {tuned} {tuned} 52.1 |" in text
    assert re.search(r"\| mean of 2 \| lora \| 40\.0 \([^|]+\| 7\.0 \| 3\.0 \| 25\.0 \| 40\.0", text)
    assert "| base | lora | +30.0 |" in text
    assert "gsm8k +30.0, svamp +30.0" in text
    assert "most frequent answer gets: GSM8K" in text
    assert "4 beams for `paper`" in text
    assert "SECRET" not in text


def test_unknown_training_data_are_said_to_be_unknown(tmp_path: Path) -> None:
    text = write_evaluation_report(_folder(tmp_path, leaked=None)).read_text()
    assert "nothing can be said of contamination" in text
    assert "ublished" not in text


def test_seeds_of_one_recipe_are_pooled_and_others_are_not(tmp_path: Path) -> None:
    def adapter(recipe: str, seed: int) -> dict[str, Any]:
        return {
            "methods": [{"method": "lora"}], "parameters": 1, "recipe": recipe,
            "training": {"source": "math", "size": 640, "seed": seed},
        }  # fmt: skip

    manifest = {**MANIFEST, "adapters": {"a": adapter("x", 0), "b": adapter("x", 1), "c": adapter("y", 0)}}
    text = write_evaluation_report(_folder(tmp_path, models=(None, "a", "b", "c"), manifest=manifest)).read_text()
    assert "## Seeds pooled" in text
    pooled = [line for line in text.splitlines() if line.startswith("| a, b | 2 |")]
    assert [line.split(" | ")[2:4] for line in pooled] == [["standard", "2"], ["paper", "2"]]
    assert all("| 40.0 (" in line for line in pooled)
    assert "| a, c |" not in text


def test_a_short_dtype_says_how_many_texts_the_batch_changed(tmp_path: Path) -> None:
    manifest = {**MANIFEST, "dtype": "bfloat16", "alone": {"rows": 16, "differ": 3}}
    text = write_evaluation_report(_folder(tmp_path, manifest=manifest)).read_text()
    assert "of 16 rows decoded again by themselves, 3 gave another text" in text
    assert "Seeds pooled" not in text


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete evaluation"):
        write_evaluation_report(tmp_path)
    with pytest.raises(DataError, match="GPT-J-6B"):
        write_evaluation_report(_folder(tmp_path), beside="GPT-5")
