"""Ray's local cluster of two nodes, one of which is killed in the middle."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_adapters.study.ledger import Ledger
from llm_adapters.study.ray_cluster import Ray
from llm_adapters.study.trials import read_study
from llm_adapters.study.work import work
from llm_adapters.train import Stop
from tiny_study import begin, results, study_place, tiny_study
from watching import Watching

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(p) for p in sys.path if p))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made, second
    ray.shutdown()
    made.shutdown()


def _half_way(folder: Path, node: str) -> bool:
    """Whether that node has a run with a checkpoint, and without an end."""
    for log in (folder / "logs").glob("*.log"):
        on = [line for line in log.read_text().splitlines() if " on node " in line]
        run = folder / "runs" / log.stem
        checkpoint = any(run.glob("checkpoints/step-*/checkpoint.json"))
        if on and on[-1].endswith(node) and checkpoint and not (run / "training.json").exists():
            return True
    return False


def test_a_node_that_is_killed_loses_nothing(tmp_path: Path, cluster: tuple[Any, Any]) -> None:
    place = study_place(tmp_path)
    data = tiny_study(place)
    data["axes"]["seed"] = list(range(12))
    data["run"]["train"]["epochs"] = 12
    whole = begin(place, "whole", data)
    work(whole, Watching())
    folder = begin(place, "ray", data)
    made, second = cluster
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            done = sum(trial.status == "done" for trial in read_study(folder).trials)
            if done >= 3 and _half_way(folder, second.node_id):
                made.remove_node(second, allow_graceful=False)
                killed.append(done)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    Ray(cpus=1).run(folder, Watching(), Stop())
    killer.join()
    assert 3 <= killed[0] < 24
    assert Counter(trial.status for trial in read_study(folder).trials) == {"done": 24}
    assert results(folder) == results(whole)
    with Ledger(folder) as ledger:
        assert Counter(kind for _, kind, _, _ in ledger.events()) == {"claimed": 24, "done": 24}
    logs = "".join(path.read_text() for path in (folder / "logs").glob("*.log"))
    assert "going on with the run in" in logs  # the run that the node had was gone on with elsewhere
    assert second.node_id in logs
