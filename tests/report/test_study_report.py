"""The whole report of a study: what stands in it, what must not, and how long it takes."""

import csv
import json
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llm_adapters.errors import DataError, OutputError
from llm_adapters.report.collect import collect
from llm_adapters.report.study_report import write_run_page, write_study_report
from llm_adapters.study.trials import StudyRecord
from report.studies import HOSTILE, write_study


def _csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_every_part_is_there_and_one_seed_says_so(written: Path) -> None:
    text = (written / "report.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Summary", "Accuracy", "Figures", "Paired tests of the leading configurations",
        "What the training data give away", "Cost", "Forgetting", "Runs", "Reproducibility",
    ]  # fmt: skip
    assert "12 of 13 trials have finished: 12 configurations." in text
    assert "**Every number comes from one seed.**" in text
    assert "| bad | lora · 64 | failed | Out of memory |" in text
    assert "| math10k, 640 rows | gsm8k | 10 | 100 | 10.0 |" in text
    drawn = {path.name for path in (written / "figures").iterdir()}
    assert {"bars-placement-1.svg", "bars-placement-2.svg", "curve-size-1.svg", "loss.svg", "forgetting.svg"} <= drawn
    assert all(f"figures/{name}" in text for name in drawn)


def test_the_numbers_are_those_of_the_runs(written: Path, study: StudyRecord) -> None:
    run = next(run for run in collect(study).runs if run.trial.id == "lora-mlp-16-0")
    gsm8k = next(score for score in run.tuned.scores if score.benchmark == "gsm8k")
    (beside,) = [
        row for row in _csv(written / "tables" / "beside.csv")
        if row["configuration"] == "lora · mlp · 16" and row["set"] == "gsm8k"
    ]  # fmt: skip
    assert float(beside["accuracy"]) == pytest.approx(100 * gsm8k.accuracy)
    assert float(beside["accuracy low"]) == pytest.approx(100 * gsm8k.low, rel=1e-4)
    assert beside["published"] == "37.5"  # LLaMA-7B with LoRA, Table 3
    assert float(beside["difference"]) == pytest.approx(100 * gsm8k.accuracy - 37.5, abs=1e-3)
    assert (beside["seeds"], beside["unparsed"], beside["clean rows"]) == ("one seed", "1", "90")
    both = [score.accuracy for score in run.tuned.scores]
    (row,) = [row for row in _csv(written / "tables" / "runs.csv") if row["trial"] == "lora-mlp-16-0"]
    assert float(row["accuracy"]) == pytest.approx(100 * sum(both) / 2)


def test_the_leaders_are_tested_in_pairs_and_the_base_loses(written: Path) -> None:
    rows = _csv(written / "tables" / "significance.csv")
    assert len(rows) == 15  # the base and five leaders
    against_base = [row for row in rows if row["A"] == "base"]
    assert all(float(row["p, Holm"]) < 0.001 and float(row["B - A, points low"]) > 0 for row in against_base)
    assert all(row["seeds"] == "one seed" for row in rows)


def test_peefts_columns_are_filled(written: Path) -> None:
    rows = _csv(written / "method_comparison.csv")
    assert len(rows) == 24  # a row a run and set
    first = rows[0]
    assert (first["peft_type"], first["num_trainable_params"], first["task_name"]) == ("LORA", "4000", "gsm8k")
    assert float(first["test_accuracy"]) <= 1
    assert json.loads(first["peft_config"])["rank"] == 4


def test_figures_are_whole_files_that_need_nothing(written: Path) -> None:
    for path in (written / "figures").iterdir():
        root = ElementTree.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert "prefers-color-scheme: dark" in path.read_text()
        assert "href" not in path.read_text()


def test_without_predictions_nothing_of_a_test_set_is_written(study: StudyRecord, tmp_path: Path) -> None:
    folder = write_study_report(study, tmp_path / "public", with_predictions=False)
    everything = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "She said" not in everything
    assert "What is 1" not in everything
    assert str(study.folder) not in everything
    assert "Single predictions are left out" in everything


def test_what_a_completion_says_never_becomes_part_of_the_page(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert HOSTILE not in page
    assert "</script><script>alert" not in page
    assert page.count("She said") >= 12  # and yet it is there


def test_the_limit_keeps_the_best_runs_and_says_what_is_missing(study: StudyRecord, tmp_path: Path) -> None:
    page = (write_study_report(study, tmp_path / "r", limit=60_000) / "report.html").read_text()
    opened = page.count('class="open"')
    assert 0 < opened < 12
    assert f"{12 - opened} runs did not fit into this page" in page
    assert all("lora" in part.split("<", 1)[0] for part in page.split('class="open"')[1:])


def test_another_folder_is_not_overwritten_and_an_old_report_is(study: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        write_study_report(study, tmp_path)
    out = write_study_report(study, tmp_path / "r", with_predictions=False)
    (out / "tables" / "gone.csv").write_text("")
    write_study_report(study, out, with_predictions=False)
    assert not (out / "tables" / "gone.csv").exists()


def test_a_study_without_a_finished_trial_says_so(study: StudyRecord) -> None:
    empty = StudyRecord("s", study.folder, {}, [study.trials[-1]], {})
    with pytest.raises(DataError, match="has finished"):
        write_study_report(empty)


def test_a_single_run_has_a_page_too(study: StudyRecord) -> None:
    page = write_run_page(study.trials[0].folder).read_text()
    assert "Run lora-attention-4-0" in page
    assert 'data-run="0"' in page


def test_a_thousand_runs_take_seconds_and_not_minutes(tmp_path: Path) -> None:
    axes = {
        "method": ["lora", "series", "parallel", "prefix"], "placement": [f"place {i}" for i in range(10)],
        "size": ["4", "8", "16", "32", "64"], "seed": [str(i) for i in range(5)],
    }  # fmt: skip
    record = write_study(tmp_path, axes, lambda point: 0.3 + int(point["size"]) / 400, count=200)
    assert len(record.trials) == 1000
    started = time.process_time()
    folder = write_study_report(record)
    assert time.process_time() - started < 60
    assert len(_csv(folder / "tables" / "runs.csv")) == 1000
