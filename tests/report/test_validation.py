"""Validation losses beside one another: ordered, and compared only where they judge the same rows."""

from pathlib import Path
from typing import Any

from llm_adapters.report.collect import collect
from llm_adapters.report.pooled import configurations
from llm_adapters.report.validation import validation
from llm_adapters.study.trials import StudyRecord, TrialRecord
from report.studies import manifest, write_run

LOSSES = {("lora", "0"): 1.2, ("lora", "1"): 1.4, ("series", "0"): 1.1, ("series", "1"): 1.5, ("prefix", "0"): None}


def _study(folder: Path, **data: Any) -> StudyRecord:
    trials = []
    for (method, seed), loss in LOSSES.items():
        axes = {"method": method, "seed": seed}
        training = manifest(axes)["training"] | {"best_loss": loss}
        changed = {"training": training, "data": manifest(axes)["data"] | data.get(method, {})}
        path = write_run(folder / f"{method}-{seed}", axes, {"gsm8k": [True]}, {"gsm8k": [True]}, **changed)
        trials.append(TrialRecord(path.name, axes, path, "done", None, 12.0))
    return StudyRecord("losses", folder, {"method": [], "seed": []}, trials, {})


def test_the_smallest_mean_comes_first_and_seeds_are_compared_with_their_own(tmp_path: Path) -> None:
    table = validation(configurations(collect(_study(tmp_path))))
    assert table is not None
    assert [(row[0], row[2].text, row[3]) for row in table.rows] == [
        ("lora", "1.300", "0: +0.100 · 1: +0.000"),
        ("series", "1.300", "0: +0.000 · 1: +0.100"),
    ]  # prefix was not validated


def test_other_validation_rows_are_not_compared(tmp_path: Path) -> None:
    table = validation(configurations(collect(_study(tmp_path, lora={"validation": "f" * 64}))))
    assert table is not None
    assert [row[3] for row in table.rows] == ["0: +0.000 · 1: +0.000"] * 2


def test_without_validation_there_is_no_table(tmp_path: Path) -> None:
    record = _study(tmp_path)
    alone = StudyRecord(record.name, record.folder, record.axes, record.trials[-1:], {})
    assert validation(configurations(collect(alone))) is None
