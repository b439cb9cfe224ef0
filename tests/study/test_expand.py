"""Study files: what they expand to, and that all their mistakes are told before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_adapters.errors import ConfigError
from llm_adapters.study.prepare import Prepared, check
from tiny_study import study_place, tiny_study

LORA_SITES = {"attention": {"adapter.sites": ["attn.q", "attn.v"]}, "mlp": {"adapter.sites": ["ffn.up", "ffn.down"]}}
SERIES_SITES = {"attention": {"adapter.sites": ["attn"]}, "mlp": {"adapter.sites": ["ffn"]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_place(tmp_path_factory.mktemp("expand"))


def _labels(prepared: Prepared) -> list[tuple[str, ...]]:
    return [tuple(trial.axes.values()) for trial in prepared.trials]


def _check(place: Path, axes: dict[str, Any] | None = None, **sections: Any) -> Prepared:
    data = tiny_study(place, **sections)
    return check({**data, "axes": data["axes"] if axes is None else axes}, place, where="s.yaml")


def _refused(place: Path, axes: dict[str, Any] | None = None, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        _check(place, axes, **sections)
    return str(caught.value)


def test_a_grid_sets_the_fields_of_every_run(place: Path) -> None:
    prepared = _check(place)
    assert _labels(prepared) == [("lora", "0"), ("lora", "1"), ("series", "0"), ("series", "1")]
    last = prepared.trials[-1]
    assert (last.config.adapter[0].name(), last.config.adapter[0].bottleneck, last.config.seed) == ("series", 4, 1)
    assert (last.config.name, len(last.id)) == (last.id, 10)
    assert (last.parameters, last.steps, last.rows) == (2 * 2 * 4 * 32, 4, 4)
    assert [trial.config.evaluate.seed for trial in prepared.trials] == [0] * 4  # all on the same rows


def test_an_id_follows_from_what_the_run_is(place: Path) -> None:
    ids = {trial.axes["method"]: trial.id for trial in _check(place, {"method": ["lora", "series"]}).trials}
    renamed = (
        _check(place, {"kind": {"a": {"adapter.method": "series"}, "b": {"from": "lora.yaml"}}})
        if ((place / "lora.yaml").write_text("name: x\nadapter: {method: lora}\n"))
        else None
    )
    assert renamed is not None
    assert {trial.axes["kind"]: trial.id for trial in renamed.trials} == {"a": ids["series"], "b": ids["lora"]}


def test_values_may_depend_on_other_axes(place: Path) -> None:
    axes = {
        "method": ["lora", "series", "prefix"],
        "placement": [{"when": {"method": "lora"}, "values": LORA_SITES},
                      {"when": {"method": ["series"]}, "values": SERIES_SITES}],
        "size": [{"when": {"method": "prefix"}, "values": [3, 5]}],
    }  # fmt: skip
    prepared = _check(place, axes)
    assert _labels(prepared) == [
        ("lora", "attention"), ("lora", "mlp"), ("series", "attention"), ("series", "mlp"), ("prefix", "3"),
        ("prefix", "5"),
    ]  # fmt: skip
    assert prepared.trials[3].config.adapter[0].sites == ("ffn",)
    assert prepared.trials[5].config.adapter[0].tokens == 5
    kept = _check(place, axes, where=[{"method": "prefix"}, {"placement": "mlp"}], exclude=[{"size": 3}])
    assert _labels(kept) == [("lora", "mlp"), ("series", "mlp"), ("prefix", "5")]


def test_one_size_axis_for_methods_that_call_it_otherwise(place: Path) -> None:
    trials = _check(place, {"method": ["lora", "series", "prefix"], "size": [2, 4]}).trials
    sizes = [getattr(t.config.adapter[0], f) for t, f in zip(trials, ["rank"] * 2 + ["bottleneck"] * 2 + ["tokens"] * 2,
                                                            strict=True)]  # fmt: skip
    assert sizes == [2, 4, 2, 4, 2, 4]


def test_listed_runs_name_labels_and_fields(place: Path) -> None:
    runs = [{"method": "lora", "seed": 1}, {"method": "series", "adapter.bottleneck": 6, "seed": 7}]
    with pytest.raises(ConfigError, match=r"axis 'seed' has no value '7'"):
        _check(place, runs=runs)
    runs[1]["seed"] = 0
    prepared = _check(place, runs=runs)
    assert _labels(prepared) == [("lora", "1"), ("series", "6", "0")]
    assert prepared.trials[1].config.adapter[0].bottleneck == 6


def test_random_runs_are_stable_and_grow_at_the_end(place: Path) -> None:
    axes = {"method": ["lora", "series"], "train.learning_rate": {"range": {"low": 1e-4, "high": 1e-1, "log": True}}}
    few, many = _check(place, axes, random=5), _check(place, axes, random=8)
    assert _labels(many)[:5] == _labels(few)
    rates = [trial.config.train.learning_rate for trial in many.trials]
    assert len(set(rates)) == 8
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert sum(rate < 1e-2 for rate in rates) > 2  # drawn by its logarithm
    assert _labels(_check(place, axes, random=5, random_seed=1)) != _labels(few)
    assert "only 4 different" in _refused(place, random=9)
    assert "no end of values" in _refused(place, axes)


def test_the_resolved_study_reads_back_as_the_same_runs(place: Path) -> None:
    (place / "base.yaml").write_text("train: {epochs: 2, warmup: 3}\n")
    axes = {"method": {"lora": {"from": "lora.yaml", "adapter.rank": 2}, "prefix": {"adapter.method": "prefix"}},
            "train.learning_rate": [1e-3, {"lora": 1e-2}],
            "placement": [{"when": {"method": "lora"}, "values": LORA_SITES}]}  # fmt: skip
    (place / "lora.yaml").write_text("adapter: {method: lora}\n")
    prepared = _check(place, axes, base="base.yaml")
    assert prepared.trials[0].config.train.epochs == 1  # the study's own run wins over its base
    text = yaml.safe_dump(prepared.study.resolved(), sort_keys=False)
    again = check(yaml.safe_load(text), place / "elsewhere", where="again")
    assert [trial.id for trial in again.trials] == [trial.id for trial in prepared.trials]
    assert _labels(again) == _labels(prepared)


def test_all_mistakes_are_told_at_once_and_nothing_runs(place: Path) -> None:
    said = _refused(
        place,
        {
            "metod": ["lora"], "data.size": [], "train.learning_rat": [1],
            "adapter.rank": {"values": [2], "when": {"mthod": 1}},
            "method": ["lora", "prefix"],
            "sites": {"values": [["attn.q"], ["attn.qkv"]], "when": {"method": "lora"}},
        },
        exclude=[{"seeed": 0}], budget={"match": "parameters"}, random="many",
        run={"model": {"source": str(place / "model")}, "data": {"train": str(place / "nowhere.jsonl")},
             "train": {"epochs": -1}},
    )  # fmt: skip
    for part in (
        "'metod' names no field", "nearest: method", "'data.size' has no values", "nearest: train.learning_rate",
        "no axis 'mthod'", "no axis 'seeed'", "either 'to' a number or 'like' a run", "field 'random' is 'many'",
        "field 'train.epochs' is -1",
    ):  # fmt: skip
        assert part in said, part
    assert "nothing was run" in said
    assert not (place / "studies").exists()
    run = tiny_study(place)["run"]
    run["data"] = {"train": str(place / "nowhere.jsonl")}
    said = _refused(place, {"method": ["lora", "prefix"], "sites": {"values": [["attn.q"], ["attn.qkv"]],
                                                                 "when": {"method": "lora"}}}, run=run)  # fmt: skip
    assert "no site 'attn.qkv'" in said
    assert "on 1 of 3 runs, the first: method=lora sites=attn.qkv" in said
    assert "nowhere.jsonl" in said


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "neither axes nor runs"),
        ({"method": ["lora", "lora"]}, "value twice: lora"),
        ({"method": ["lora", "series"], "adapter.rank": [2]}, "unknown field 'rank'"),
        (
            {"method": ["lora"], "alpha": {"one": {"adapter.alpha": 8}, "two": {"adapter.alpha": 8.0}}},
            "the same run as",
        ),
        ({"method": ["lora", "series"], "size": {"range": {"low": 4, "high": 2}}}, "nothing lies between"),
        ({"method": {"lora": {"adapter.metod": "lora"}}}, "nearest: adapter.method"),
        ({"method": {"lora": {"from": "nowhere.yaml"}}}, "no configuration file"),
    ],
)
def test_a_mistake_in_the_axes(place: Path, axes: dict[str, Any], said: str) -> None:
    assert said in _refused(place, axes)


def test_conditions_that_leave_nothing_are_refused(place: Path) -> None:
    assert "leave no run" in _refused(place, exclude=[{"method": ["lora", "series"]}])


@pytest.mark.parametrize(
    ("sections", "said"),
    [({"evaluate": False}, "accuracy cannot be the objective"), ({"objective": "validation_loss"}, "on 4 of 4 runs")],
)
def test_an_objective_that_no_run_could_tell_is_refused(place: Path, sections: dict[str, Any], said: str) -> None:
    assert said in _refused(place, **sections)
