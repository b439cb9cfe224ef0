from pathlib import Path

import pytest

from llm_adapters.errors import OutputError
from llm_adapters.runs.folder import fresh_folder


def test_force_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        (folder / "eval").mkdir(parents=True)
        (folder / "config.yaml").write_text("x")
        (folder / "eval" / "gsm8k.jsonl").write_text("x")
        (folder / "trackers").mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="--force"):
        fresh_folder(run, force=False)
    assert (run / "config.yaml").exists()
    fresh_folder(run, force=True)
    assert list(run.iterdir()) == []
    with pytest.raises(OutputError, match="no run's folder"):
        fresh_folder(other, force=True)
    assert {path.name for path in other.rglob("*")} == {
        "config.yaml", "eval", "gsm8k.jsonl", "thesis.tex", "trackers",
    }  # fmt: skip
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(OutputError):
        fresh_folder(tmp_path / "link", force=True)


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fresh_folder(tmp_path / "empty", force=False)
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        with pytest.raises(OutputError):
            fresh_folder(tmp_path / "file", force=force)
