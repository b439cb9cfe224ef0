"""Intervals of configurations: against Wilson's, against each other, and in coverage."""

from pathlib import Path

import numpy as np
import pytest

from llm_adapters.evaluation.statistics import pooled_seeds, wilson
from llm_adapters.report.collect import collect
from llm_adapters.report.pooled import MEAN, configurations, pooled, ranked
from llm_adapters.study.trials import StudyRecord
from report.studies import write_run, write_study


def test_one_seed_and_one_set_have_wilsons_interval() -> None:
    values = np.array([1.0] * 30 + [0.0] * 70)
    assert pooled([[values]], crossed=True) == (0.3, wilson(30, 100))


def test_seeds_on_the_same_rows_have_the_interval_of_pooled_seeds_within_bounds() -> None:
    random = np.random.default_rng(0)
    seeds = [(random.random(200) < 0.5).astype(float), (random.random(200) < 0.9).astype(float)]
    value, (low, high) = pooled([seeds], crossed=True)
    assert value == pytest.approx(float(np.mean(seeds)))
    assert (
        (low, high) == pooled_seeds([np.stack(seeds)], resamples=2000).interval == (0.0, 1.0)
    )  # two seeds that differ so much say next to nothing


def test_seeds_with_rows_of_their_own_cover_the_truth() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        chances = 0.5 + 0.05 * random.standard_normal(3)
        seeds = [(random.random(100) < chance).astype(float) for chance in chances]
        low, high = pooled([seeds], crossed=False).interval
        inside += low <= 0.5 <= high
    assert 0.9 <= inside / 300 <= 1.0


def test_configurations_pool_their_seeds_and_keep_their_numbers(tmp_path: Path) -> None:
    chance = {"lora": 0.6, "series": 0.3}
    record = write_study(
        tmp_path, {"method": ["lora", "series"], "seed": ["0", "1", "2"]}, lambda point: chance[point["method"]],
    )  # fmt: skip
    found = collect(record)
    base, lora, series = configurations(found)
    assert [point.label for point in (base, lora, series)] == ["base", "lora", "series"]
    result = lora.results["standard", "gsm8k"]
    assert (result.seeds, result.rows, lora.seeds) == (3, 200, "3 seeds")
    correct = [score.correct for run in lora.runs for score in run.tuned.scores]
    assert result.accuracy.value == pytest.approx(sum(correct) / 600)
    clean = [score.clean_correct or 0 for run in lora.runs for score in run.tuned.scores]
    assert result.clean is not None
    assert result.clean.value == pytest.approx(sum(clean) / 540)
    assert result.unparsed == pytest.approx(1 / 200)
    assert [point.label for point in ranked([base, series, lora])] == ["lora", "series"]


def test_the_base_may_stand_in_the_study_alone(tmp_path: Path) -> None:
    right = {"gsm8k": np.arange(50) < 20}
    write_run(tmp_path / "base", {}, {}, {"gsm8k": np.arange(50) < 10})
    for path in (tmp_path / "base" / "eval").iterdir():  # what "tuned" answered is the base's
        path.write_text(path.read_text().replace('"tuned"', "null"))
    record = write_study(tmp_path / "x", {"method": ["lora"]}, lambda _point: 1.0, count=50)
    own = write_run(tmp_path / "runs" / "a", {"method": "lora"}, {}, right)
    trial = record.trials[0].__class__("a", {"method": "lora"}, own, "done")
    found = collect(StudyRecord("s", tmp_path, {"method": ["lora"]}, [trial], {}))
    base, tuned = configurations(found)
    assert base.results["standard", MEAN].accuracy.value == 0.2
    assert tuned.results["standard", MEAN].accuracy.value == 0.4
    assert found.runs[0].base_folder == tmp_path / "base" / "eval"
