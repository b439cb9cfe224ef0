"""Adaptive search with Optuna, on tiny runs; and ending runs early, which needs no Optuna to be watched."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_adapters.errors import ConfigError
from llm_adapters.study.bases import Bases
from llm_adapters.study.ledger import Ledger
from llm_adapters.study.prepare import check, open_study
from llm_adapters.study.pruning import Early, Rungs, is_among_the_best, loss_at, rungs
from llm_adapters.study.trials import read_study
from llm_adapters.train import Stop
from tiny_study import study_place, tiny_study
from watching import Watching

AXES = {"method": ["lora", "series"],
        "size": [{"when": {"method": "lora"}, "values": [1, 2]}, {"when": {"method": "series"}, "values": [3]}],
        "learning_rate": {"range": {"low": 1e-4, "high": 1e-1, "log": True}}}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_place(tmp_path_factory.mktemp("search"))


def _data(place: Path, axes: dict[str, Any] = AXES, **search: Any) -> dict[str, Any]:
    data = tiny_study(place, axes=axes, search=search, objective="last_loss", evaluate=False)
    data["run"]["train"]["epochs"] = 3
    return data


def _search(place: Path, name: str, axes: dict[str, Any] = AXES, **search: Any) -> Path:
    from llm_adapters.study.search import Adaptive

    prepared = check(_data(place, axes, **search), place, where="test")
    open_study(prepared, place / name, lambda _text: None)
    Adaptive(prepared.study, Bases()).run(place / name, Watching(), Stop())
    return place / name


def test_a_search_proposes_runs_of_the_space_and_goes_on(place: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    folder = _search(place, "few", runs=4)
    before = [(trial.id, trial.axes) for trial in read_study(folder).trials]
    assert len(before) == 4
    _search(place, "few", runs=12)
    trials = read_study(folder).trials
    assert [(trial.id, trial.axes) for trial in trials[:4]] == before
    assert Counter(trial.status for trial in trials) == {"done": 12}
    assert {trial.axes["method"] for trial in trials} == {"lora", "series"}
    assert {trial.axes["size"] for trial in trials if trial.axes["method"] == "lora"} <= {"1", "2"}
    assert {trial.axes["size"] for trial in trials if trial.axes["method"] == "series"} == {"3"}
    with Ledger(folder) as ledger:
        scores = [entry.detail["score"] for entry in ledger.entries()]
    rates = [float(trial.axes["learning_rate"]) for trial in trials]
    best = max(zip(rates, scores, strict=True), key=lambda pair: -pair[1])[0]
    assert best > 1e-3  # a larger rate learns more in few steps, and the search sees it
    assert trials == read_study(_search(place, "few", runs=12)).trials  # nothing is left to do


def test_a_search_goes_on_when_its_axes_have_changed(place: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    folder = _search(place, "changed", runs=3, sampler="random")
    changed = {"method": ["lora", "parallel"], "learning_rate": {"range": {"low": 1e-3, "high": 2e-3}}, "seed": [0, 1]}
    _search(place, "changed", changed, runs=6, sampler="tpe")
    trials = read_study(folder).trials
    assert Counter(trial.status for trial in trials) == {"done": 6}
    assert all(trial.axes.keys() == changed.keys() for trial in trials[3:])


def test_runs_that_are_not_among_the_best_end_early(place: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
    folder = _search(place, "halved", runs=14, halving=True, sampler="random")
    trials = read_study(folder).trials
    states = Counter(trial.status for trial in trials)
    assert states["done"] >= 4
    assert states["failed"] >= 3
    assert states["done"] + states["failed"] == 14
    for trial in trials:
        if trial.status == "failed":
            assert "ended early" in (trial.error or "")
            assert loss_at(trial.folder, 12) is None
    with Ledger(folder) as ledger:
        assert ledger.retry_failed() == 0  # they are not taken up again


def test_a_search_that_could_not_begin_is_refused(place: Path) -> None:
    data = _data(place, runs=3)
    data["axes"] = {**AXES, "sites": [["attn.qkv"], ["attn.q"]]}
    with pytest.raises(ConfigError, match=r"no site 'attn\.qkv'"):
        check(data, place, where="test")
    with pytest.raises(ConfigError, match="a search knows no run"):
        check({**_data(place, runs=3), "budget": {"match": "parameters", "like": {"method": "lora"}}}, place, where="t")


def test_a_run_is_judged_at_its_rungs(tmp_path: Path) -> None:
    assert rungs(90) == [10, 30]
    assert rungs(2) == [1]
    seen: list[tuple[int, float]] = []
    stop = Early(None)

    def judge(step: int, loss: float) -> bool:
        seen.append((step, loss))
        return step == 30

    watching = Rungs(Watching(), tmp_path, judge, stop)
    watching.begin("training at learning rate 1", 90)
    for step in range(1, 31):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "loss": {step}.0}}\n')
        assert not stop.asked
        watching.advance(1)
    assert seen == [(10, 9.5), (30, 27.5)]
    assert stop.asked


def test_the_best_third_goes_on() -> None:
    assert is_among_the_best(9.0, [1.0])  # two cannot be compared
    assert not is_among_the_best(2.0, [1.0, 3.0])
    assert is_among_the_best(1.0, [2.0, 3.0])
    assert [is_among_the_best(loss, [1.0, 2.0, 3.0, 4.0, 5.0]) for loss in (0.5, 1.5, 2.5)] == [True, True, False]
