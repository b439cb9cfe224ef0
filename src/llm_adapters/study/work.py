"""A worker: takes a waiting run, carries it out, writes down what came of it, and takes the next."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.adapters.method import methods, parse_method
from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import Stopped, UserError
from llm_adapters.runs.outcome import outcome
from llm_adapters.runs.run import Observer, execute
from llm_adapters.study.ledger import Entry, Ledger
from llm_adapters.study.trials import RUNS, STUDY, described
from llm_adapters.study.workers import working
from llm_adapters.train import Stop

BASE = "base"
"""In a study's folder: what the bare base answers, for all runs."""


@dataclass(frozen=True)
class Place:
    """Where a study lies, and how its runs are carried out.

    Attributes:
        folder: of the study.
        score: whether the runs evaluate.
        objective: what they are judged by.
    """

    folder: Path
    score: bool
    objective: str

    @classmethod
    def of(cls, folder: Path) -> Place:
        """A study that was opened."""
        settings = yaml.safe_load((folder / STUDY).read_text(encoding="utf-8"))
        return cls(folder, settings["evaluate"], settings["objective"])

    def run(self, id_: str) -> Path:
        """The folder of a run."""
        return self.folder / RUNS / id_


@dataclass(frozen=True)
class Worker:
    """Takes runs of a study and carries them out.

    Attributes:
        ledger: of the study.
        name: of this worker, while it lives.
        place: the study.
        observer: told of every run.
        stop: asked after every training step.
    """

    ledger: Ledger
    name: str
    place: Place
    observer: Observer
    stop: Stop | None

    @classmethod
    @contextmanager
    def of(cls, folder: Path, observer: Observer, stop: Stop | None) -> Iterator[Worker]:
        """A worker on a study that was opened."""
        with Ledger(folder) as ledger, working(folder) as name:
            gc.freeze()  # imported modules stay: looking through them after every run would take its time
            try:
                yield cls(ledger, name, Place.of(folder), observer, stop)
            finally:
                gc.unfreeze()

    def settle(
        self,
        entries: Sequence[Entry],
        together: Callable[[Sequence[Entry]], Mapping[str, str]] = lambda _entries: {},
        ended_early: Callable[[], tuple[int, float] | None] = lambda: None,
    ) -> None:
        """Carry out claimed runs, and write into the ledger what came of each.

        Args:
            entries: the runs.
            together: carries them out at once, and gives by id why runs failed; what is neither complete nor failed
                then is carried out alone.
            ended_early: of a run that was not among the best, step and loss; None where the user asked to stop.

        Raises:
            Stopped: the runs that are not complete wait again.
        """
        left = {entry.id: entry for entry in entries}
        try:
            failed = together(entries)
            for entry in entries:
                if entry.id in failed:
                    self.ledger.record(entry.id, "failed", self.name, error=failed[entry.id])
                    self.observer.note(f"{entry.id} failed: {failed[entry.id]}")
                else:
                    self._settle(entry, ended_early)
                del left[entry.id]
        except (Stopped, KeyboardInterrupt):
            with suppress(Stopped, KeyboardInterrupt):
                for id_ in left:
                    self.ledger.record(id_, "released", self.name)
            raise
        finally:
            gc.collect()  # the model of this run goes before that of the next comes

    def _settle(self, entry: Entry, ended_early: Callable[[], tuple[int, float] | None]) -> None:
        folder, config = self.place.run(entry.id), dict(entry.config)
        try:
            if outcome(folder, config, self.place.objective) is None:
                execute(
                    read(config), folder, self.observer, score=self.place.score, stop=self.stop,
                    base=self.place.folder / BASE,
                )  # fmt: skip
            result = outcome(folder, config, self.place.objective)
            assert result is not None, f"run {entry.id} ended without a manifest"
        except Exception as failure:
            self.ledger.record(entry.id, "failed", self.name, **told(failure))
            self.observer.note(f"{entry.id} failed: {told(failure)['error']}")
        except Stopped as stopped:
            end = ended_early()
            if end is None:
                raise
            said = f"ended early, not among the best third at step {end[0]} with loss {end[1]:.3f}: {stopped}"
            self.ledger.record(entry.id, "ended", self.name, error=said, early=end)
            self.observer.note(f"{entry.id} {said}")
        else:
            self.ledger.record(entry.id, "done", self.name, **result.record())


def work(folder: Path, observer: Observer, stop: Stop | None = None) -> None:
    """Carry out waiting runs, one after the other, until none is left that nobody has taken.

    Args:
        folder: of a study that was opened.
        observer: told of every run.
        stop: asked after every training step.

    Raises:
        Stopped: ``stop`` was asked; the run under way waits again, and goes on from its checkpoint.
    """
    with Worker.of(folder, observer, stop) as worker:
        while taken := worker.ledger.claim(worker.name):
            (entry,) = taken
            observer.note(f"run {_number(worker.ledger, entry)}: {described(entry.axes)} ({entry.id})")
            worker.settle([entry])


def told(failure: Exception) -> dict[str, str]:
    """A failure for the ledger: a user's mistake as it reads, anything else with its traceback."""
    if isinstance(failure, UserError):
        return {"error": str(failure)}
    trace = "".join(traceback.format_exception(failure))
    return {"error": f"{type(failure).__name__}: {failure}", "trace": trace}


def read(config: Mapping[str, Any]) -> RunConfig:
    """A run's configuration from the ledger."""
    return RunConfig.parse(config, where="ledger", context={"parse_method": parse_method, "methods": list(methods())})


def _number(ledger: Ledger, entry: Entry) -> str:
    ids = [each.id for each in ledger.entries()]
    return f"{ids.index(entry.id) + 1} of {len(ids)}"
