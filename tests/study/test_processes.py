"""Several processes: real ones, with torch imported anew."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from llm_adapters.study.ledger import Ledger
from llm_adapters.study.trials import read_study
from llm_adapters.study.work import work
from tiny_study import begin, results, study_place, tiny_study
from watching import Watching

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = study_place(tmp_path_factory.mktemp("processes"))
    data = tiny_study(place)
    data["axes"]["seed"] = list(range(12))
    (place / "s.yaml").write_text(yaml.safe_dump(data))
    folder = begin(place, "whole", data)
    work(folder, Watching())
    return place


def _study(place: Path, out: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from llm_adapters.cli import main; main()", "study", "s.yaml", "--out", out,
         "--workers", "2", *more],
        cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _done(folder: Path) -> int:
    try:
        return [trial.status for trial in read_study(folder).trials].count("done")
    except Exception:
        return 0


def _await(command: subprocess.Popen[str], folder: Path, done: int) -> None:
    while _done(folder) < done:
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)


def test_two_processes_killed_as_a_group_five_times(place: Path) -> None:
    folder = place / "killed"
    for kill in range(5):
        command = _study(place, "killed")
        _await(command, folder, 3 * kill + 1)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
    said, _ = _study(place, "killed").communicate(timeout=300)
    assert "24 done" in said
    assert "best so far" in said
    assert results(folder) == results(place / "whole")
    with Ledger(folder) as ledger:
        done = Counter(trial for trial, kind, _, _ in ledger.events() if kind == "done")
    assert set(done.values()) == {1}
    assert len(done) == 24


def test_a_worker_that_dies_fails_its_run_and_another_takes_its_place(place: Path) -> None:
    folder = place / "dying"
    command = _study(place, "dying")
    _await(command, folder, 2)
    victim = next(
        child for child in psutil.Process(command.pid).children()
        if any(f"-{child.pid}-" in entry.worker and entry.state == "running" for entry in Ledger(folder).entries())
    )  # fmt: skip
    victim.kill()
    said, _ = command.communicate(timeout=300)
    states = Counter(trial.status for trial in read_study(folder).trials)
    assert states["done"] + states["failed"] == 24
    assert states["failed"] <= 1  # it may have been between two runs
    if states["failed"]:
        assert "killed by signal 9" in said
        command = _study(place, "dying", "--retry-failed")
        assert "24 done" in command.communicate(timeout=300)[0]
    assert results(folder) == results(place / "whole")


def test_sigterm_stops_with_the_line_that_goes_on(place: Path) -> None:
    folder = place / "stopped"
    command = _study(place, "stopped")
    _await(command, folder, 2)
    command.terminate()
    _, said = command.communicate(timeout=60)
    assert command.returncode == 0
    assert "to go on: llm-adapters study s.yaml --out stopped --workers 2" in said.replace("-c ", "")
    assert Counter(trial.status for trial in read_study(folder).trials)["running"] == 0
    assert psutil.pid_exists(command.pid) is False


def test_workers_end_with_the_process_that_began_them(place: Path) -> None:
    folder = place / "orphans"
    command = _study(place, "orphans")
    _await(command, folder, 1)
    workers = [c for c in psutil.Process(command.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    command.kill()
    began = time.monotonic()
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    command.communicate()
    assert _done(folder) < 24
    assert "stopped" in "".join(path.read_text() for path in (folder / "logs").iterdir())
