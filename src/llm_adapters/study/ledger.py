"""The ledger of a study: which runs are planned, and everything that ever happened to them.

One SQLite file. ``trials`` is the plan; ``events`` is only ever appended to, and the state of a run follows from its
last event. A transaction is there completely or not at all, whenever the process is killed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from llm_adapters.config.schema import RunConfig
from llm_adapters.errors import OutputError
from llm_adapters.study.workers import is_alive

FILE = "ledger.sqlite"
_PATIENCE = 60  # seconds that a worker waits for the others
State = Literal["waiting", "running", "done", "failed"]
Kind = Literal["claimed", "released", "done", "failed", "ended", "retry"]
"""``ended``: early, because others were better. It counts as failed, and is not taken up again."""
_STATES: Mapping[str | None, State] = {
    None: "waiting", "claimed": "running", "released": "waiting", "done": "done", "failed": "failed",
    "ended": "failed", "retry": "waiting"
}  # fmt: skip
_TABLES = """
CREATE TABLE IF NOT EXISTS trials (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL, planned INTEGER NOT NULL, axes TEXT NOT NULL, config TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, trial TEXT NOT NULL, kind TEXT NOT NULL, worker TEXT NOT NULL,
    at REAL NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_trial ON events (trial, number);
"""
_ENTRIES = """
SELECT t.id, t.axes, t.config, t.planned, e.kind, e.worker, e.at, e.detail,
       (SELECT COUNT(*) FROM events c WHERE c.trial = t.id AND c.kind = 'claimed') AS attempts
FROM trials t LEFT JOIN events e ON e.number = (SELECT MAX(number) FROM events m WHERE m.trial = t.id)
ORDER BY t.place, t.id
"""


_OFTEN = 3
"""Beginnings without an end."""


class Proposal(Protocol):
    """A run that may be planned."""

    @property
    def id(self) -> str: ...
    @property
    def axes(self) -> dict[str, str]: ...
    @property
    def config(self) -> RunConfig: ...


@dataclass(frozen=True)
class Entry:
    """A run as the ledger knows it.

    Attributes:
        id: its id, and the name of its folder.
        axes: the label that it has on each axis.
        config: its resolved configuration.
        planned: whether the present plan has it; runs of an earlier plan stay in the ledger.
        state: where it is. A run whose worker was killed is waiting again.
        worker: who has it, or had it last.
        at: when that was, in seconds since 1970.
        attempts: how often it was begun or gone on with.
        abandoned: whether it is waiting because its worker was killed.
        detail: what its last event tells: ``error``, or ``seconds`` and ``score``.
    """

    id: str
    axes: Mapping[str, str]
    config: Mapping[str, Any] = field(repr=False)
    planned: bool = True
    state: State = "waiting"
    worker: str = ""
    at: float = 0.0
    attempts: int = 0
    abandoned: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """The ledger in a study's folder.

    Raises:
        OutputError: the file is damaged, or no ledger.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        if not create and not (folder / FILE).is_file():
            raise OutputError(f"'{folder}' holds no study", mend="llm-adapters study STUDY.yaml begins one")
        folder.mkdir(parents=True, exist_ok=True)
        # Autocommit: transactions begin and end where they are written.
        self._database = sqlite3.connect(folder / FILE, timeout=_PATIENCE, isolation_level=None)
        with self._understood():
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            if create:
                self._database.executescript(_TABLES)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def plan(self, trials: Sequence[tuple[str, Mapping[str, str], Mapping[str, Any]]]) -> tuple[int, int]:
        """Make these (id, axes, config) the plan; what happened to earlier ones stays.

        Returns:
            How many are new, and how many of an earlier plan are in it no more.
        """
        with self._transaction():
            rows = self._database.execute("SELECT id, planned FROM trials").fetchall()
            known, before = {row[0] for row in rows}, {row[0] for row in rows if row[1]}
            self._database.execute("UPDATE trials SET planned = 0")
            self._database.executemany(
                "INSERT INTO trials VALUES (?, ?, 1, ?, ?) ON CONFLICT (id) DO UPDATE SET planned = 1, "
                "place = excluded.place, axes = excluded.axes",
                [
                    (id_, place, json.dumps(axes), json.dumps(config))
                    for place, (id_, axes, config) in enumerate(trials)
                ],
            )
        now = {id_ for id_, _, _ in trials}
        return len(now - known), len(before - now)

    def propose(self, worker: str, limit: int, make: Callable[[list[Entry]], Proposal]) -> list[Entry]:
        """Plan one run more and take it, unless ``limit`` runs are planned.

        Args:
            worker: who takes it.
            limit: of the plan.
            make: the run, which is not in the ledger yet, from those of the plan.
        """
        with self._transaction():
            entries = self.entries()
            if len(entries) >= limit:
                return []
            trial = make(entries)
            (place,) = self._database.execute("SELECT COALESCE(MAX(place), -1) + 1 FROM trials").fetchone()
            config = trial.config.model_dump(mode="json")
            self._database.execute(
                "INSERT INTO trials VALUES (?, ?, 1, ?, ?)",
                (trial.id, place, json.dumps(trial.axes), json.dumps(config)),
            )
            self._append(trial.id, "claimed", worker, {})
        return [Entry(trial.id, trial.axes, config)]

    def entries(self, *, planned: bool = True) -> list[Entry]:
        """The runs of the plan in its order; with ``planned=False`` those of earlier plans too."""
        with self._understood():
            rows = self._database.execute(_ENTRIES).fetchall()
        alive: dict[str, bool] = {}
        found = []
        for id_, axes, config, in_plan, kind, worker, at, detail, attempts in rows:
            if planned and not in_plan:
                continue
            state = _STATES[kind]
            if state == "running":
                if worker not in alive:
                    alive[worker] = is_alive(self.folder, worker)
                state = "running" if alive[worker] else "waiting"
            found.append(
                Entry(
                    id_, json.loads(axes), json.loads(config), bool(in_plan), state, worker or "", at or 0.0, attempts,
                    kind == "claimed" and state == "waiting",
                    json.loads(detail or "{}"),
                )
            )  # fmt: skip
        return found

    def claim(self, worker: str, choose: Callable[[list[Entry]], Sequence[Entry]] = lambda w: w[:1]) -> list[Entry]:
        """Take waiting runs, which from then on nobody else takes while ``worker`` lives.

        A run that was begun often and never came to an end, perhaps because it takes its process along, waits behind
        all others.

        Args:
            worker: the name of a living worker.
            choose: of the waiting runs, those to take.
        """
        with self._transaction():
            waiting = [entry for entry in self.entries() if entry.state == "waiting"]
            taken = list(choose(sorted(waiting, key=lambda entry: entry.attempts >= _OFTEN)))
            for entry in taken:
                self._append(entry.id, "claimed", worker, {})
        return taken

    def record(self, id_: str, kind: Kind, worker: str, **detail: Any) -> None:
        """Append what happened to a run."""
        with self._transaction():
            self._append(id_, kind, worker, detail)

    def retry_failed(self) -> int:
        """Let failed runs of the plan wait again; gives how many."""
        with self._transaction():
            failed = [e for e in self.entries() if e.state == "failed" and not e.detail.get("early")]
            for entry in failed:
                self._append(entry.id, "retry", "", {})
        return len(failed)

    def events(self) -> list[tuple[str, str, str, float]]:
        """Everything that happened, in order: run, kind, worker, when."""
        with self._understood():
            return self._database.execute("SELECT trial, kind, worker, at FROM events ORDER BY number").fetchall()

    def _append(self, id_: str, kind: Kind, worker: str, detail: Mapping[str, Any]) -> None:
        self._database.execute(
            "INSERT INTO events (trial, kind, worker, at, detail) VALUES (?, ?, ?, ?, ?)",
            (id_, kind, worker, time.time(), json.dumps(detail)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Alone on the file: what is read inside is still so when it is written."""
        with self._understood():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as failure:
            if getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                held = f"the ledger '{self.folder / FILE}' was held by others for {_PATIENCE} s"
                raise OutputError(held, mend="the same command again") from failure
            raise OutputError(
                f"the ledger '{self.folder / FILE}' cannot be used: {failure}",
                mend="move it away: the same command makes it again from the runs that are complete",
            ) from failure
