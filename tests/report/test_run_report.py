import json
from pathlib import Path

import pytest

from llm_adapters.errors import DataError
from llm_adapters.report import write_report

SCORES = [
    {"adapter": None, "benchmark": "b", "protocol": "standard", "total": 100,
     "correct": 10, "unparsed": 2, "accuracy": 0.1, "low": 0.06,
     "high": 0.17, "cut": 3, "clean_total": 50, "clean_correct": 5},
    {"adapter": "tuned", "benchmark": "b", "protocol": "standard", "total": 100,
     "correct": 40, "unparsed": 0, "accuracy": 0.4, "low": 0.31,
     "high": 0.5, "cut": 0, "clean_total": 50, "clean_correct": 18},
]  # fmt: skip
MANIFEST = {
    "config": {"name": "r"}, "learning_rate": 1e-3, "seconds": 9.0, "peak_memory_bytes": 2**30, "code": "c" * 64,
    "training": {"steps": 5, "tokens": 100, "seconds": 2.0, "first_loss": 2.0, "last_loss": 1.0},
    "parameters": {"trained": 10, "base": 1000}, "hardware": {"device": "cpu", "threads": 2},
    "versions": {"torch": "2"}, "data": {"train": "d" * 64},
}  # fmt: skip


def _folder(
    path: Path, scores: list[dict[str, object]], *, more: int = 0, protocols: tuple[str, ...] = ("standard",)
) -> Path:
    """A run with a row that became right, one that no longer is, and ``more`` that became right."""
    (path / "eval").mkdir()
    rows = [
        {"adapter": a, "benchmark": "b", "protocol": protocol, "row": i, "question": f"Q{i}", "gold": "1",
         "completion": c, "status": s}
        for protocol in protocols
        for a, i, c, s in [
            (None, 0, "no", "wrong"), (None, 1, "yes", "correct"), ("tuned", 0, "now", "correct"),
            ("tuned", 1, "lost", "wrong"), *((None, i, "no", "wrong") for i in range(2, 2 + more)),
            *(("tuned", i, "now", "correct") for i in range(2, 2 + more)),
        ]
    ]  # fmt: skip
    (path / "eval" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "eval" / "summary.json").write_text(json.dumps({"scores": scores, "means": []}))
    (path / "manifest.json").write_text(json.dumps(MANIFEST))
    return path


def test_the_report_says_what_changed_and_how_sure_it_is(tmp_path: Path) -> None:
    text = write_report(_folder(tmp_path, SCORES, more=9, protocols=("standard", "paper"))).read_text()
    assert "| b | standard | base | 10.0% | 6.0% – 17.0% | 10 / 100 | 2 | 3 | 10.0% of 50 |" in text
    # 10 gained, 1 lost: p = 2 · (1 + 11) / 2^11
    assert "+81.8 points: of 11 rows 10 became right and 1 no longer are (McNemar's exact test, p = 0.012)." in text
    assert "10 (1.00% of 1,000)" in text
    assert "Now correct: 10 of 11 rows" in text  # of one protocol
    assert "> Q0" in text
    assert "No longer correct: 1 of 11 rows" in text


def test_as_many_lost_as_gained_is_called_no_evidence(tmp_path: Path) -> None:
    text = write_report(_folder(tmp_path, SCORES)).read_text()
    assert "p = 1, this run alone does not show a difference)" in text


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete run"):
        write_report(tmp_path)
