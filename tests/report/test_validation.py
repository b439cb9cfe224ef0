"""Validation losses beside one another: ordered, and compared only where they judge the same rows."""

from pathlib import Path

import pytest

from llm_adapters.report.collect import collect
from llm_adapters.report.pooled import configurations
from llm_adapters.report.validation import validation
from llm_adapters.study.trials import StudyRecord, TrialRecord
from report.studies import manifest, write_run

LOSSES = {("lora", "0"): 1.2, ("lora", "1"): 1.3, ("series", "0"): 1.1, ("series", "1"): 1.55, ("prefix", "0"): None}


def _study(folder: Path, validation: str = "v", train_on: str = "completion") -> StudyRecord:
    """LoRA has other validation rows, or labels, than the rest if asked."""
    trials = []
    for (method, seed), loss in LOSSES.items():
        axes, own = {"method": method, "seed": seed}, method == "lora"
        plain = manifest(axes)
        data = plain["config"]["data"] | {"train_on": train_on if own else "completion"}
        changed = {
            "config": plain["config"] | {"data": data},
            "training": plain["training"] | {"best_loss": loss},
            "data": plain["data"] | {"validation": validation if own else "v"},
        }
        path = write_run(folder / f"{method}-{seed}", axes, {"gsm8k": [True]}, {"gsm8k": [True]}, **changed)
        trials.append(TrialRecord(path.name, axes, path, "done", None, 12.0))
    return StudyRecord("losses", folder, {"method": [], "seed": []}, trials, {})


def test_the_smallest_mean_comes_first_and_seeds_are_compared_with_their_own(tmp_path: Path) -> None:
    table = validation(configurations(collect(_study(tmp_path))))
    assert table is not None
    assert table.heads[3:] == ["above, seed 0", "above, seed 1"]
    assert [(row[0], *(cell.text for cell in row[2:])) for row in table.rows] == [
        ("lora", "1.250", "+0.1000", "+0.0000"),
        ("series", "1.325", "+0.0000", "+0.2500"),
    ]  # prefix was not validated


@pytest.mark.parametrize("changed", ["validation", "train_on"])
def test_other_rows_or_labels_are_not_compared(changed: str, tmp_path: Path) -> None:
    table = validation(configurations(collect(_study(tmp_path, **{changed: "other"}))))
    assert table is not None
    assert [row[3:] for row in table.rows] == [[None, None]] * 2


def test_without_validation_there_is_no_table(tmp_path: Path) -> None:
    record = _study(tmp_path)
    alone = StudyRecord(record.name, record.folder, record.axes, record.trials[-1:], {})
    assert validation(configurations(collect(alone))) is None
