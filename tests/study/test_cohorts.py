"""Which waiting runs become a cohort; and cohorts against single runs, where this version trains them."""

import json
from pathlib import Path

from llm_adapters.evaluation.rows import read_rows
from llm_adapters.study.cohorts import Cohorts, alike, begun_with
from llm_adapters.study.ledger import Entry
from llm_adapters.study.trials import read_study
from llm_adapters.study.work import work
from llm_adapters.train import Stop
from tiny_study import begin, study_place, tiny_study
from watching import Watching


def _entry(id_: str, model: str, seed: int = 0) -> Entry:
    return Entry(id_, {}, {"model": model, "data": "d", "evaluate": "e", "seed": seed})


def test_runs_on_one_base_and_its_data_go_together() -> None:
    waiting = [_entry("a", "x"), _entry("b", "y"), _entry("c", "x", seed=1), _entry("d", "x", seed=2)]
    assert [entry.id for entry in alike(waiting, 2)] == ["a", "c"]
    assert [entry.id for entry in alike(waiting, 9)] == ["a", "c", "d"]
    assert [entry.id for entry in alike(waiting, 2, ["z", "d", "a"])] == ["a", "d"]  # the cohort that has begun
    assert alike([], 2) == []


def test_a_run_tells_the_cohort_that_it_began_in(tmp_path: Path) -> None:
    assert begun_with(tmp_path) == []
    (tmp_path / "begun.json").write_text(json.dumps({"data": {}}))
    assert begun_with(tmp_path) == []
    (tmp_path / "begun.json").write_text(json.dumps({"cohort": {"members": ["a", "b"], "rows": 4}}))
    assert begun_with(tmp_path) == ["a", "b"]


def test_cohorts_answer_as_single_runs_do(tmp_path: Path) -> None:
    place = study_place(tmp_path)
    alone, together = begin(place, "alone", tiny_study(place)), begin(place, "together", tiny_study(place))
    work(alone, Watching())
    watching = Watching()
    Cohorts(4).run(together, watching, Stop())
    assert {trial.status for trial in read_study(together).trials} == {"done"}
    assert not any("one by one" in note for note in watching.notes)
    for trial in read_study(alone).trials:
        one, other = (read_rows(f / "runs" / trial.id / "eval" / "test.jsonl") for f in (alone, together))
        assert [row["completion"] for row in one] == [row["completion"] for row in other]
