"""Studies that are killed, shared, extended, and whose runs fail."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from forks import ended
from llm_adapters.errors import OutputError, Stopped
from llm_adapters.study.ledger import Ledger
from llm_adapters.study.status import read_status
from llm_adapters.study.trials import read_study
from llm_adapters.study.work import work
from llm_adapters.train import Stop
from tiny_study import begin, results, study_place, tiny_study, work_in_child
from watching import Watching

SEEDS = {"seed": list(range(12))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_place(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """24 runs, undisturbed."""
    data = tiny_study(place)
    folder = begin(place, "whole", {**data, "axes": {**data["axes"], **SEEDS}})
    work(folder, Watching())
    return folder


def _states(folder: Path) -> Counter[str]:
    return Counter(trial.status for trial in read_study(folder).trials)


def test_five_kills_and_two_workers_give_what_was_left_alone(place: Path, whole: Path) -> None:
    data = tiny_study(place)
    folder = begin(place, "killed", {**data, "axes": {**data["axes"], **SEEDS}})
    for kill in range(5):
        first = work_in_child(folder)
        while _states(folder)["done"] <= 4 * kill:
            assert os.waitpid(first, os.WNOHANG) == (0, 0), "the worker has ended by itself"
            time.sleep(0.005)
        time.sleep(0.03 * kill)  # into different moments of a run
        os.killpg(first, signal.SIGKILL)
        os.waitpid(first, 0)
    assert 5 <= _states(folder)["done"] < 24
    assert _states(folder)["running"] == 0  # the kill let go of it
    two = [work_in_child(folder), work_in_child(folder)]
    assert [ended(child) for child in two] == [0, 0]
    assert _states(folder) == {"done": 24}
    assert results(folder) == results(whole)
    with Ledger(folder) as ledger:
        events = ledger.events()
    assert Counter(trial for trial, kind, _, _ in events if kind == "done") == Counter(
        trial.id for trial in read_study(folder).trials
    )
    for trial in read_study(folder).trials:
        assert [kind for id_, kind, _, _ in events if id_ == trial.id][-1] == "done"  # never taken again after that
    after = [worker for _, kind, worker, _ in events if kind == "claimed"]
    assert len(set(after)) == 7  # five that were killed, and two that both had runs


def test_an_axis_value_more_runs_only_what_is_new(place: Path, whole: Path) -> None:
    folder = begin(place, "grown", tiny_study(place))
    work(folder, Watching())
    data = tiny_study(place)
    axes = {**data["axes"], "seed": [0, 1, 2]}
    begin(place, "grown", {**data, "axes": axes})
    assert _states(folder) == {"done": 4, "waiting": 2}
    watching = Watching()
    work(folder, watching)
    assert len([begun for begun in watching.begun if begun.startswith("loading")]) == 2
    assert _states(folder) == {"done": 6}
    known = results(whole)
    assert results(folder) == {id_: known[id_] for id_ in results(folder)}
    begin(place, "grown", {**data, "axes": {**axes, "seed": [2]}})
    assert _states(folder) == {"done": 2}
    with Ledger(folder) as ledger:
        assert len(ledger.entries(planned=False)) == 6


def test_a_run_that_fails_is_kept_and_blocks_nobody(place: Path) -> None:
    data = tiny_study(place)
    data["axes"] = {**data["axes"], "seed": [0], "train.learning_rate": [0.01, 1e38]}  # the second gives no number
    data["run"]["train"].update(max_grad_norm=None, schedule="constant", warmup=0)
    folder = begin(place, "failing", data)
    work(folder, Watching())
    study = read_study(folder)
    assert _states(folder) == {"done": 2, "failed": 2}
    for trial in study.trials:
        assert (trial.status == "failed") == (trial.axes["train.learning_rate"] == "1e+38")
        assert ("learning rate" in (trial.error or "")) == (trial.status == "failed")
    work(folder, Watching())  # not by itself
    assert _states(folder) == {"done": 2, "failed": 2}
    status = read_status(folder)
    assert len(status.failed) == 2
    assert status.best is not None
    with Ledger(folder) as ledger:
        assert ledger.retry_failed() == 2
    assert _states(folder) == {"done": 2, "waiting": 2}


def test_being_asked_to_stop_lets_go_of_the_run(place: Path) -> None:
    folder = begin(place, "stopped", tiny_study(place))
    stop = Stop()

    class Asking(Watching):
        def advance(self, amount: int, note: str = "") -> None:  # noqa: ARG002
            stop.asked = stop.asked or "training at" in self.begun[-1]

    with pytest.raises(Stopped):
        work(folder, Asking(), stop)
    assert _states(folder) == {"waiting": 4}
    with Ledger(folder) as ledger:
        assert [kind for _, kind, _, _ in ledger.events()] == ["claimed", "released"]
    work(folder, Watching())
    assert _states(folder) == {"done": 4}


def test_the_ledger_follows_the_folders(place: Path) -> None:
    folder = begin(place, "moved", tiny_study(place))
    work(folder, Watching())
    before = results(folder)
    for file in folder.glob("ledger.sqlite*"):
        file.unlink()
    begin(place, "moved", tiny_study(place))
    assert _states(folder) == {"done": 4}
    lost = read_study(folder).trials[1]
    (lost.folder / "manifest.json").rename(lost.folder / "elsewhere")
    begin(place, "moved", tiny_study(place))
    assert _states(folder) == {"done": 3, "waiting": 1}
    (lost.folder / "elsewhere").rename(lost.folder / "manifest.json")
    work(folder, Watching())  # complete in its folder: taken for done, not run again
    assert _states(folder) == {"done": 4}
    assert results(folder) == before


def test_another_study_is_not_written_over(place: Path, whole: Path) -> None:
    with pytest.raises(OutputError, match="holds the study 'tiny'"):
        begin(place, whole.name, tiny_study(place, name="other"))
    with pytest.raises(OutputError, match="something else"):
        begin(place, "model", tiny_study(place))


def test_the_base_was_asked_once(whole: Path) -> None:
    (shared,) = (whole / "base").iterdir()
    assert len((shared / "eval" / "test.jsonl").read_text().splitlines()) == 4
