"""The main job on the real bundled model, short: what it leaves on disk, and that it learns."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llm_adapters as la
from llm_adapters.cli import app
from llm_adapters.errors import OutputError

SHORT = [
    "data.size=16",
    "train.batch_size=8",
    "train.warmup=1",
    "train.learning_rate=2e-3",
    "evaluate.size=6",
    "evaluate.max_new_tokens=16",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    options = [part for pair in SHORT for part in ("--set", pair)]
    result = CliRunner().invoke(app, ["run", *options, "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_the_run_leaves_everything_that_it_promises(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    summary = json.loads((run / "eval" / "summary.json").read_text())["scores"]
    rows = [json.loads(line) for line in (run / "eval" / "word-problems.jsonl").read_text().splitlines()]
    assert [score["adapter"] for score in summary] == [None, "tuned"]
    assert len(rows) == 12
    assert summary[1]["correct"] == sum(row["status"] == "correct" for row in rows if row["adapter"] == "tuned")
    assert manifest["training"]["steps"] == 6
    assert manifest["training"]["last_loss"] < manifest["training"]["first_loss"]
    assert manifest["parameters"] == {"trained": 2442240, "base": 134515008}
    report = (run / "report.md").read_text()
    assert "| 95 % interval |" in report
    assert "2,442,240" in report


def test_the_saved_adapter_attaches_to_the_base_again(run: Path) -> None:
    model, _ = la.load_model()
    adapter = la.attach(model, run / "adapter", "again")
    assert adapter.count() == 2442240
    assert float(adapter.get_parameter("lora.0.attn_q.B").detach().abs().max()) > 0


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    for name in ("manifest.json", "eval/summary.json"):
        (tmp_path / name).write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(OutputError, match="--force"):
        CliRunner().invoke(app, ["run", "--out", str(tmp_path)], catch_exceptions=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
