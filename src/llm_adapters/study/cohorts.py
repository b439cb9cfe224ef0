"""The executor of cohorts: runs that share base and data train together on one frozen base."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_adapters.errors import ConfigError
from llm_adapters.study.ledger import Entry
from llm_adapters.study.run import Observer
from llm_adapters.study.work import Worker, read
from llm_adapters.train import Stop

_MODULE = "llm_adapters.study.cohort"
SHARED = ("model", "data", "evaluate")
"""The sections that the runs of a cohort have in common."""


@dataclass(frozen=True)
class Cohorts:
    """Up to ``size`` waiting runs at a time, on one base. What a cohort does not bring to its end is run alone."""

    size: int

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:
        if find_spec(_MODULE) is None:
            raise ConfigError("this version trains no cohorts", mend="leave --cohort out")
        execute_cohort: Callable[..., object] = importlib.import_module(_MODULE).execute_cohort
        with Worker.of(folder, observer, stop) as worker:

            def together(entries: Sequence[Entry]) -> None:
                if len(entries) == 1:
                    return
                try:
                    execute_cohort(
                        [read(entry.config) for entry in entries], [worker.place.run(entry.id) for entry in entries],
                        observer, force=False, score=worker.place.score, stop=stop,
                    )  # fmt: skip
                except Exception as failure:  # which of them it was shows when each is carried out alone
                    observer.note(f"the cohort ended early, its runs go on one by one: {failure}")

            while taken := worker.ledger.claim(worker.name, lambda waiting: alike(waiting, self.size)):
                observer.note(f"a cohort of {len(taken)} runs: {', '.join(entry.id for entry in taken)}")
                worker.settle(taken, together)


def alike(waiting: Sequence[Entry], size: int) -> list[Entry]:
    """The first waiting run, and those that may train with it."""
    found: list[Entry] = []
    for entry in waiting:
        if len(found) < size and (not found or _shared(entry) == _shared(found[0])):
            found.append(entry)
    return found


def _shared(entry: Entry) -> list[Any]:
    return [entry.config[section] for section in SHARED]
