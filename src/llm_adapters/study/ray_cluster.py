"""The executor for clusters: every run is a task of Ray; the ledger stays with the process that began the study.

The study's folder must be the same path on every node (a shared file system).
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_adapters.errors import MissingExtraError, Stopped
from llm_adapters.runs.folder import exclusively
from llm_adapters.runs.outcome import outcome
from llm_adapters.runs.run import Observer, execute
from llm_adapters.study.ledger import Entry
from llm_adapters.study.log import Log
from llm_adapters.study.processes import LOGS
from llm_adapters.study.work import BASE, Place, Worker, read, told
from llm_adapters.train import Stop

_LOOK = 0.5  # seconds between two looks at the tasks


@dataclass(frozen=True)
class Ray:
    """As many runs at once as the cluster has room for.

    Attributes:
        address: of the cluster; None is the one that this process is connected to, or a new one on this machine.
        gpus, cpus: that one run gets.
        retries: how often a run is taken up elsewhere when its worker or node dies; it goes on from its checkpoint.
    """

    address: str | None = None
    gpus: float = 0
    cpus: float = 1
    retries: int = 3

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_carry_out)
        (folder / LOGS).mkdir(exist_ok=True)
        with Worker.of(folder, observer, stop) as worker:
            under_way: dict[Any, Entry] = {}
            total = len(worker.ledger.entries())
            observer.begin("runs", total)
            observer.advance(sum(entry.state == "done" for entry in worker.ledger.entries()))
            try:
                while True:
                    for entry in worker.ledger.claim(worker.name, lambda w: w[: self._room(ray, len(under_way))]):
                        under_way[task.remote(str(worker.place.folder.resolve()), entry.id, dict(entry.config))] = entry
                    if not under_way:
                        break
                    for done in ray.wait(list(under_way), num_returns=1, timeout=_LOOK)[0]:
                        self._record(ray, worker, done, under_way[done])
                        del under_way[done]
                        observer.advance(1, f"{len(under_way)} running")
            except (Stopped, KeyboardInterrupt):
                self._let_go(ray, worker, under_way)
                raise
            observer.end(f"{sum(entry.state == 'done' for entry in worker.ledger.entries())} of {total} done")

    def _room(self, ray: Any, busy: int) -> int:
        """How many runs more the cluster, as it is now, has room for; one at least, for a cluster that grows."""
        have = ray.cluster_resources()
        rooms = [int(have.get(kind, 0) // need) for kind, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need]
        return max(0, max(min(rooms, default=1), 1) - busy)  # a node that died leaves fewer rooms than runs

    def _record(self, ray: Any, worker: Worker, task: Any, entry: Entry) -> None:
        try:
            failure = ray.get(task)
        except Exception as lost:  # the node or the worker died, once too often
            failure = told(lost)
        result = outcome(worker.place.run(entry.id), dict(entry.config), worker.place.objective)
        if result is not None:
            worker.ledger.record(entry.id, "done", worker.name, **result.record())
            return
        failure = failure or {"error": "the task ended without a complete run: is the study's folder shared?"}
        worker.ledger.record(entry.id, "failed", worker.name, **failure)
        worker.observer.note(f"{entry.id} failed: {failure['error']}")

    def _let_go(self, ray: Any, worker: Worker, under_way: dict[Any, Entry]) -> None:
        """End the tasks, each of which writes a checkpoint first, and let their runs wait again."""
        with suppress(Stopped, KeyboardInterrupt):
            for task in under_way:
                ray.cancel(task)
            ray.wait(list(under_way), num_returns=len(under_way), timeout=60)
            for entry in under_way.values():
                worker.ledger.record(entry.id, "released", worker.name)


def _carry_out(folder: str, id_: str, config: dict[str, Any]) -> dict[str, str] | None:
    """On a node: one run, from the beginning or from its checkpoint; gives what failed."""
    place = Place.of(Path(folder))
    run = place.run(id_)
    with (place.folder / LOGS / f"{id_}.log").open("a", encoding="utf-8") as file, Stop() as stop:
        log = Log(file)
        log.note(f"{id_} on node {_ray().get_runtime_context().get_node_id()}")
        try:
            if run.is_dir():
                with exclusively(run, wait=True):  # a worker whose node died may take a moment to end
                    pass
            if outcome(run, config, place.objective) is None:
                execute(read(config), run, log, score=place.score, stop=stop, base=place.folder / BASE)
        except Stopped as stopped:
            raise RuntimeError(str(stopped)) from None
        except Exception as failure:
            log.note(f"failed: {failure}")
            return told(failure)
    return None


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as failure:
        raise MissingExtraError("ray", "ray", "running a study on a cluster") from failure
