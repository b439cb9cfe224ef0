"""A run on a quantised base says so, and is evaluated on the same base unless asked otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_adapters.config.schema import EvaluateSection
from llm_adapters.errors import AdapterError, ConfigError
from llm_adapters.evaluation.suite import Suite
from llm_adapters.report import write_evaluation_report
from llm_adapters.runs.evaluation import evaluate_targets, read_targets
from llm_adapters.runs.run import execute, read_config
from tiny_folder import sums
from tiny_quantised import needs, quantised_folder


class Silent:
    """An observer that says nothing."""

    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...
    def note(self, text: str) -> None: ...


def run(folder: Path, kind: str) -> Path:
    """Evaluate, train and evaluate for a few steps."""
    data = sums(folder / "sums.jsonl", 24)
    settings = [
        f"model.source={quantised_folder()}", f"model.quantization={kind}", f"data.train={data}",
        f"evaluate.data={data}", "evaluate.size=4", "evaluate.max_new_tokens=4", "train.epochs=1", "train.warmup=0",
        "adapter.rank=2",
    ]  # fmt: skip
    return execute(read_config(None, settings), folder / kind, Silent())


def evaluated(folder: Path, *runs: Path, quantization: str | None = None) -> dict[str, Any]:
    """The manifest of an evaluation of runs."""
    targets = read_targets([str(path) for path in runs], str(quantised_folder()), with_base=True)
    suites = [Suite.of(str(folder / "sums.jsonl"), 3, 0, "plain", "standard")]
    settings, out = EvaluateSection(batch_size=4, max_new_tokens=4), folder / f"evaluation-{quantization}"
    evaluate_targets(targets, suites, settings, out, Silent(), quantization=quantization)
    assert (quantization or "bnb-nf4") in write_evaluation_report(out).read_text() or quantization == "none"
    return json.loads((out / "manifest.json").read_text())


def test_training_and_evaluation_record_the_quantisation(tmp_path: Path) -> None:
    needs("bnb-nf4")
    done = run(tmp_path, "bnb-nf4")
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["config"]["model"]["quantization"] == manifest["base"]["quantization"] == "bnb-nf4"
    assert manifest["versions"]["bitsandbytes"]
    plain = run(tmp_path, "none")
    other = json.loads((plain / "manifest.json").read_text())
    assert other["base"]["quantization"] is None
    assert manifest["parameters"] == other["parameters"]  # counted, not read off packed bytes
    assert manifest["training"]["last_loss"] < manifest["training"]["first_loss"]

    assert evaluated(tmp_path, done)["quantization"] == "bnb-nf4"
    assert evaluated(tmp_path, done, quantization="none")["quantization"] is None
    alone, *_ = read_targets([str(done / "adapter")], None, with_base=False)
    assert alone.quantization == "bnb-nf4"
    (tmp_path / "copy").mkdir()  # an adapter without its run
    for file in (done / "adapter").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    copy, *_ = read_targets([str(tmp_path / "copy")], None, with_base=False)
    assert copy.quantization == "bnb-nf4"
    with pytest.raises(AdapterError, match=r"(?s)bnb-nf4: bnb-nf4, none: none.*--quantization none"):
        evaluated(tmp_path, done, plain)
    assert evaluated(tmp_path, done, plain, quantization="bnb-int8")["quantization"] == "bnb-int8"


def test_an_unknown_kind_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"(?s)quantization.*bnb-nf4"):
        read_config(None, ["model.quantization=nf4"])
