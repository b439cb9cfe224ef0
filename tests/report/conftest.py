"""One study with known numbers for all tests of reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llm_adapters.report.study_report import write_study_report
from llm_adapters.study.trials import StudyRecord, TrialRecord
from report.studies import write_study

LEVEL = {"lora": 0.6, "series": 0.4, "prefix": 0.25}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """Three methods, two placements, two sizes, one seed, two sets; one further trial has failed."""
    axes = {"method": list(LEVEL), "placement": ["attention", "mlp"], "size": ["4", "16"], "seed": ["0"]}
    record = write_study(
        tmp_path_factory.mktemp("study"), axes, lambda point: LEVEL[point["method"]], sets=("gsm8k", "svamp"), count=100
    )
    failed = TrialRecord("bad", {"method": "lora", "size": "64"}, Path("no"), "failed", "Out of memory\nTraceback")
    return dataclasses.replace(record, trials=[*record.trials, failed])


@pytest.fixture(scope="session")
def written(study: StudyRecord) -> Path:
    """Its report."""
    return write_study_report(study)
