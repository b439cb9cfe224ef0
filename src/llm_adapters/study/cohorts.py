"""The executor of cohorts: runs that share base and data train together on one frozen base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters.runs.begun import BEGUN
from llm_adapters.runs.cohort import execute_cohort
from llm_adapters.runs.run import Observer
from llm_adapters.study.ledger import Entry
from llm_adapters.study.work import Worker, read
from llm_adapters.train import Stop

SHARED = ("model", "data", "evaluate")
"""The sections that the runs of a cohort have in common."""


@dataclass(frozen=True)
class Cohorts:
    """Up to ``size`` waiting runs at a time, on one base. What a cohort does not bring to its end is run alone."""

    size: int

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:
        with Worker.of(folder, observer, stop) as worker:

            def together(taken: Sequence[Entry]) -> dict[str, str]:
                """Train a cohort; gives why runs failed."""
                ids = begun_with(worker.place.run(taken[0].id)) or [entry.id for entry in taken]
                if len(ids) == 1:
                    return {}
                known = {entry.id: entry for entry in worker.ledger.entries(planned=False)}
                try:
                    failed = execute_cohort(
                        [read(known[id_].config) for id_ in ids], [worker.place.run(id_) for id_ in ids], observer,
                        force=False, score=worker.place.score, stop=stop,
                    )  # fmt: skip
                except Exception as failure:  # which of them it was shows when each is carried out alone
                    observer.note(f"the cohort ended early, its runs go on one by one: {failure}")
                    return {}
                return {id_: why for id_, why in zip(ids, failed, strict=True) if why is not None}

            def choose(waiting: list[Entry]) -> list[Entry]:
                return alike(waiting, self.size, begun_with(worker.place.run(waiting[0].id)) if waiting else [])

            while taken := worker.ledger.claim(worker.name, choose):
                observer.note(f"a cohort of {len(taken)} runs: {', '.join(entry.id for entry in taken)}")
                worker.settle(taken, together)


def begun_with(run: Path) -> list[str]:
    """The ids of the cohort that a run began in: it goes on in that one, or alone."""
    path = run / BEGUN
    cohort = json.loads(path.read_text(encoding="utf-8")).get("cohort") if path.is_file() else None
    return list(cohort["members"]) if cohort else []


def alike(waiting: Sequence[Entry], size: int, begun: Sequence[str] = ()) -> list[Entry]:
    """The first waiting run, and those that may train with it: if its cohort has begun, the rest of that."""
    if begun:
        return [entry for entry in waiting if entry.id in begun]
    found: list[Entry] = []
    for entry in waiting:
        if len(found) < size and (not found or _shared(entry) == _shared(found[0])):
            found.append(entry)
    return found


def _shared(entry: Entry) -> list[Any]:
    return [entry.config[section] for section in SHARED]
