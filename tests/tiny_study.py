"""A study of tiny runs in a folder, and what must be the same in two of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from forks import forked
from llm_adapters.study.log import Log
from llm_adapters.study.prepare import check, open_study
from llm_adapters.study.work import work
from tiny_folder import sums, tiny_folder
from tiny_training import metrics


def study_place(folder: Path) -> Path:
    """A model and data."""
    tiny_folder(folder / "model")
    sums(folder / "train.jsonl", 16)
    sums(folder / "test.jsonl", 4, start=60)
    return folder


def tiny_study(place: Path, **sections: Any) -> dict[str, Any]:
    """A study of two methods and two seeds as plain data, with some sections replaced."""
    return {
        "name": "tiny",
        "run": {
            "model": {"source": str(place / "model")},
            "data": {"train": str(place / "train.jsonl")},
            "train": {"batch_size": 4, "epochs": 1, "learning_rate": 0.01, "warmup": 1, "checkpoint_every": 2},
            "evaluate": {"data": str(place / "test.jsonl"), "size": None, "max_new_tokens": 2},
        },
        "axes": {
            "method": {
                "lora": {"adapter.method": "lora", "adapter.rank": 2},
                "series": {"adapter.method": "series", "adapter.bottleneck": 4},
            },
            "seed": [0, 1],
        },
        **sections,
    }


def begin(place: Path, name: str, data: dict[str, Any]) -> Path:
    """Open a study in a folder of its own."""
    folder = place / name
    open_study(check(data, place, where="test"), folder, lambda _text: None)
    return folder


def work_in_child(folder: Path, watch: Callable[[str], None] | None = None) -> int:
    """A worker in a forked process of its own group (torch is imported already); gives its id."""

    def worker() -> None:
        os.setsid()
        with Path(os.devnull).open("w") as null:
            log = Log(null)
            if watch is not None:
                log.note = watch  # type: ignore[method-assign]
            work(folder, log)

    return forked(worker)


def results(folder: Path) -> dict[str, Any]:
    """Of every run: the adapter, the predictions, the scores and the metrics but for the clock."""
    return {
        run.name: [
            (run / "adapter" / "adapter.safetensors").read_bytes(),
            *(path.read_bytes() for path in sorted((run / "eval").iterdir())),
            metrics(run),
            yaml.safe_load((run / "config.yaml").read_text()),
        ]
        for run in sorted((folder / "runs").iterdir())
    }
