"""Shared by all tests: one thread, fixed seeds, no network."""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    # tqdm's lock is shared with forked children, and a child that is killed while it holds it blocks all others.
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # before Triton is imported, where it is installed: its kernels run on tensors here
    )
torch.set_num_threads(1)  # tiny tensors; and several workers share two cores


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, alone or among others."""
    torch.manual_seed(0)


FORKING = (
    "test_cohort", "test_cohort_resume", "test_distributed", "test_evaluate", "test_evaluation", "test_ledger",
    "test_mistakes", "test_processes", "test_resume", "test_team_signals", "test_work", "test_workers",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: torch refuses a backward pass in a fork of a process whose autograd has threads."""
    items.sort(key=lambda item: item.path.stem not in FORKING)
