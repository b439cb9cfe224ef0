"""The ledger: who takes what, and what is left of it after a kill."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from forks import ended, forked
from llm_adapters.errors import OutputError
from llm_adapters.study.ledger import FILE, Ledger
from llm_adapters.study.trials import read_study
from llm_adapters.study.workers import clear_dead, is_alive, working


def _plan(count: int, start: int = 0) -> list[tuple[str, dict[str, str], dict[str, object]]]:
    return [(f"t{i}", {"method": "ab"[i % 2], "seed": str(i // 2)}, {"seed": i}) for i in range(start, count)]


def _states(ledger: Ledger) -> dict[str, str]:
    return {entry.id: entry.state for entry in ledger.entries()}


def test_a_run_is_waiting_running_done_or_failed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    assert ledger.plan(_plan(4)) == (4, 0)
    with working(tmp_path) as me:
        assert [entry.id for entry in ledger.claim(me)] == ["t0"]
        assert [entry.id for entry in ledger.claim(me, lambda waiting: waiting[1:])] == ["t2", "t3"]
        ledger.record("t0", "done", me, seconds=2.5)
        ledger.record("t2", "failed", me, error="too hot")
        assert _states(ledger) == {"t0": "done", "t1": "waiting", "t2": "failed", "t3": "running"}
        ledger.record("t3", "released", me)
    assert ledger.retry_failed() == 1
    assert _states(ledger) == {"t0": "done", "t1": "waiting", "t2": "waiting", "t3": "waiting"}
    assert [entry.attempts for entry in ledger.entries()] == [1, 0, 1, 1]


def test_a_larger_plan_keeps_what_happened_and_a_smaller_one_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    ledger.plan(_plan(2))
    ledger.record("t0", "done", "w", seconds=1)
    assert ledger.plan(_plan(4)) == (2, 0)
    assert ledger.plan(_plan(4, start=1)) == (0, 1)
    assert list(_states(ledger)) == ["t1", "t2", "t3"]
    assert [entry.state for entry in ledger.entries(planned=False) if not entry.planned] == ["done"]
    assert ledger.plan(_plan(4)) == (0, 0)
    assert _states(ledger)["t0"] == "done"


def test_two_processes_never_take_the_same_run(tmp_path: Path) -> None:
    Ledger(tmp_path, create=True).plan(_plan(60))

    def take_all() -> None:
        ledger = Ledger(tmp_path)
        with working(tmp_path) as me:
            while taken := ledger.claim(me):
                ledger.record(taken[0].id, "done", me)

    children = [forked(take_all) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    ledger = Ledger(tmp_path)
    claims = Counter(trial for trial, kind, _, _ in ledger.events() if kind == "claimed")
    assert claims == {f"t{i}": 1 for i in range(60)}
    assert set(_states(ledger).values()) == {"done"}


def test_a_killed_worker_lets_go_of_its_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    ledger.plan(_plan(2))

    def hold() -> None:
        with working(tmp_path) as me:
            Ledger(tmp_path).claim(me)
            time.sleep(60)

    child = forked(hold)
    while "running" not in _states(ledger).values():
        time.sleep(0.01)
    with working(tmp_path) as me:
        assert [entry.id for entry in ledger.claim(me)] == ["t1"]
        assert ledger.claim(me) == []
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert [entry.id for entry in ledger.claim(me)] == ["t0"]
        clear_dead(tmp_path)
        assert [path.stem for path in (tmp_path / "workers").iterdir()] == [me]
        assert is_alive(tmp_path, me)
    assert not is_alive(tmp_path, me)


def test_a_run_that_takes_its_workers_along_comes_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    ledger.plan(_plan(3))
    assert [ledger.claim("dead")[0].id for _ in range(6)] == ["t0"] * 3 + ["t1"] * 3
    assert ledger.claim("dead")[0].id == "t2"
    with working(tmp_path) as me:
        assert [ledger.claim(me)[0].id for _ in range(3)] == ["t2", "t0", "t1"]  # and none is given up


def test_a_study_reads_back_as_records(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    ledger.plan(_plan(4))
    ledger.record("t1", "failed", "w", error="no")
    ledger.record("t2", "done", "w", seconds=3.0)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "s"}))
    study = read_study(tmp_path)
    assert study.axes == {"method": ["a", "b"], "seed": ["0", "1"]}
    assert [trial.status for trial in study.trials] == ["waiting", "failed", "done", "waiting"]
    assert (study.trials[1].error, study.trials[2].seconds) == ("no", 3.0)
    assert study.trials[2].folder == tmp_path / "runs" / "t2"


def test_a_thousand_finished_runs_are_read_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    ledger.plan(_plan(1000))
    with ledger._transaction():
        for i in range(1000):
            ledger._append(f"t{i}", "done", "w", {"seconds": 1.0})
    began = time.perf_counter()
    assert len(ledger.entries()) == 1000
    assert time.perf_counter() - began < 2


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no study"):
        Ledger(tmp_path)
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(OutputError, match="cannot be used"):
        Ledger(tmp_path)
