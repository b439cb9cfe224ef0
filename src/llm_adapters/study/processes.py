"""Executors on one machine: this process, or several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from llm_adapters.errors import OutputError, Stopped
from llm_adapters.runs.run import Observer
from llm_adapters.study.ledger import Ledger
from llm_adapters.study.log import Log
from llm_adapters.study.work import work
from llm_adapters.train import Stop

_LOOK = 0.5  # seconds between two looks at the workers
LOGS = "logs"


class Executor(Protocol):
    """Carries out the waiting runs of a study that was opened.

    ``run`` comes back when no run is waiting that nobody has taken, and raises ``Stopped`` when it was asked to stop.
    """

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None: ...


@dataclass(frozen=True)
class InProcess:
    """One run after the other, here."""

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:
        work(folder, observer, stop)


@dataclass(frozen=True)
class Processes:
    """``workers`` processes, each with its share of the cores; what they say is in ``logs/`` of the study.

    A worker that dies by itself (out of memory) fails the run that it had; another takes its place.
    """

    workers: int

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:  # noqa: ARG002 – the workers have their own
        context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
        threads = max(1, torch.get_num_threads() // self.workers)
        (folder / LOGS).mkdir(exist_ok=True)
        numbers = iter(range(1, sys.maxsize))

        def begun() -> multiprocessing.process.BaseProcess:
            process = context.Process(target=_worker, args=(folder, next(numbers), threads))
            process.start()
            return process

        children = [begun() for _ in range(self.workers)]
        with Ledger(folder) as ledger:
            _watch(ledger, observer, children, begun)


def _watch(
    ledger: Ledger,
    observer: Observer,
    children: list[multiprocessing.process.BaseProcess],
    begun: Callable[[], multiprocessing.process.BaseProcess],
) -> None:
    entries = ledger.entries()
    observer.begin("runs", len(entries))
    shown = 0
    try:
        while children:
            states = [entry.state for entry in ledger.entries()]
            done = states.count("done") + states.count("failed")
            observer.advance(done - shown, f"{states.count('running')} running, {states.count('failed')} failed")
            shown = done
            for child in [child for child in children if not child.is_alive()]:
                children.remove(child)
                if child.exitcode and child.pid is not None:
                    blamed = _blame(ledger, child.pid, child.exitcode)
                    # One that died without a run would die again.
                    if blamed and any(entry.state == "waiting" for entry in ledger.entries()):
                        children.append(begun())
            time.sleep(_LOOK)
    finally:
        for child in children:
            child.terminate()  # a worker writes a checkpoint first
        for child in children:
            child.join()
    entries = ledger.entries()
    observer.end(f"{sum(entry.state == 'done' for entry in entries)} of {len(entries)} done")
    if left := sum(entry.state == "waiting" for entry in entries):
        raise OutputError(
            f"the workers ended, and {left} runs are waiting", mend=f"look into '{ledger.folder / LOGS}', then again"
        )


def _blame(ledger: Ledger, process: int, code: int) -> bool:
    """The run that a worker had when it died has failed: taken up by the next it might kill that one too.

    Returns:
        Whether there was one.
    """
    for entry in ledger.entries():
        if entry.abandoned and f"-{process}-" in entry.worker:
            how = f"was killed by signal {-code} (9: out of memory?)" if code < 0 else f"ended with code {code}"
            ledger.record(entry.id, "failed", entry.worker, error=f"the process that had this run {how}")
            return True
    return False


def _worker(folder: Path, number: int, threads: int) -> None:
    """The whole life of a worker's process."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def outlived() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    with (folder / LOGS / f"worker-{number}.log").open("a", encoding="utf-8") as file:
        threading.Thread(target=outlived, daemon=True).start()
        try:
            with Stop() as stop:
                work(folder, Log(file), stop)
        except (Stopped, KeyboardInterrupt):
            print("stopped", file=file)
