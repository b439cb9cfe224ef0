"""Budgets: every method gets the size at which all cost the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.method import method
from llm_adapters.config.schema import ModelSection
from llm_adapters.errors import ConfigError
from llm_adapters.model import find_sites
from llm_adapters.runs import training_shape
from llm_adapters.runs.plan import plan
from llm_adapters.runs.training_shape import TrainingShape
from llm_adapters.study.bases import Bases
from llm_adapters.study.costs import flops_per_token
from llm_adapters.study.prepare import Prepared, check
from llm_adapters.train.devices import GPUS
from tiny_study import study_place, tiny_study

FAMILIES = {
    "method": {
        "lora": {"adapter": {"method": "lora", "rank": 8, "alpha": 16, "sites": ["attn.q", "attn.v"]}},
        "series": {"adapter": {"method": "series"}},
        "parallel": {"adapter": {"method": "parallel"}},
        "prefix": {"adapter": {"method": "prefix"}},
    }
}


def _base(section: ModelSection) -> Base:
    """Of the widths of the bundled model: 30 layers, 9 query heads, 3 key–value heads of 64."""
    config = AutoConfig.for_model(
        "llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=64,
    )  # fmt: skip
    assert section.source
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Base(model, find_sites(model))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_place(tmp_path_factory.mktemp("budget"))


def _check(place: Path, budget: dict[str, Any], axes: dict[str, Any] = FAMILIES, **sections: Any) -> Prepared:
    return check(tiny_study(place, axes=axes, budget=budget, **sections), place, where="s", bases=Bases(_base))


def test_parameters_match_within_two_percent(place: Path) -> None:
    prepared = _check(place, {"match": "parameters", "like": {"method": "parallel"}})
    goal = 30 * 256 * 2 * (576 + 1536)
    counts = {trial.axes["method"]: trial.parameters for trial in prepared.trials}
    assert counts["parallel"] == goal
    assert all(abs(count / goal - 1) <= 0.02 for count in counts.values()), counts
    sizes = {trial.axes["method"]: trial.config.adapter[0] for trial in prepared.trials}
    assert (sizes["lora"].rank, sizes["lora"].alpha) == (563, 1126)  # 30 layers × 1,920 a rank; α/r stays 2
    assert sizes["series"].bottleneck == round(goal / (30 * 2 * 576))
    assert sizes["prefix"].tokens == round(goal / (30 * 384))
    assert next(t.chosen for t in prepared.trials if t.axes["method"] == "series").startswith("bottleneck 939: 32,4")
    assert [t.chosen for t in prepared.trials if t.axes["method"] == "parallel"] == [""]


def test_flops_count_the_attention_to_a_prefix(place: Path) -> None:
    base = _base(ModelSection())
    assert flops_per_token(method("prefix", tokens=10), base) == 30 * 2 * 10 * 9 * (64 + 64)
    assert flops_per_token(method("prefix", tokens=10, layers=[0, 1]), base) == 2 * 2 * 10 * 9 * (64 + 64)
    assert flops_per_token(method("lora", rank=8, sites=["attn.q"]), base) == 30 * 2 * 8 * (576 + 576)
    prepared = _check(place, {"match": "flops", "to": 4_000_000})
    for trial in prepared.trials:
        assert abs(flops_per_token(trial.config.adapter[0], base) / 4_000_000 - 1) <= 0.02
    tokens = next(t.config.adapter[0].tokens for t in prepared.trials if t.axes["method"] == "prefix")
    assert tokens == round(4_000_000 / (30 * 2 * 9 * 128))


@pytest.mark.parametrize("measure", ["memory", "time"])
def test_memory_and_time_match_what_plan_counts(place: Path, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of whole examples, and of the model as it is written: so a budget counts, for every method and machine."""
    monkeypatch.setattr(training_shape, "shares_beginnings", lambda _model, _settings: False)
    shape = TrainingShape.of
    monkeypatch.setattr(TrainingShape, "of", lambda config, **given: shape(config, **{**given, "as_written": True}))
    axes = {**FAMILIES, "seed": [0, 1]}
    prepared = check(
        tiny_study(place, axes=axes, budget={"match": measure, "like": {"method": "lora"}}), place, where="s"
    )
    predicted: dict[str, list[float]] = {}
    for trial in prepared.trials:
        planned = plan(trial.config, gpu=GPUS["T4"])
        within = sum(size for what, size in planned.memory.items() if "CUDA" not in what)
        predicted.setdefault(trial.axes["method"], []).append(within if measure == "memory" else planned.seconds)
    goal = predicted.pop("lora")[0]
    for method_name, values in predicted.items():
        assert values[0] == pytest.approx(goal, rel=0.02), method_name
    sizes = {(t.axes["method"], t.config.adapter[0].model_dump_json()) for t in prepared.trials}
    assert len(sizes) == len(FAMILIES["method"])  # one size for both seeds


@pytest.mark.parametrize(
    ("budget", "axes", "said"),
    [
        ({"match": "parameters", "to": 50_000}, FAMILIES, "bottleneck 1 costs 34,560 and bottleneck 2"),
        ({"match": "parameters", "like": {"method": "mam"}}, FAMILIES, "has no value 'mam'"),
        ({"match": "parameters", "like": {"method": "lora"}, "to": 5}, FAMILIES, "either 'to' a number or 'like'"),
        ({"match": "memory", "to": 1000}, FAMILIES, "no rank of 'lora' costs 1,000 bytes within 2%"),
        ({"match": "parameters", "like": {"method": "lora"}}, {"method": ["lora", "series"], "size": [1, 2]},
         "sets the size, and so does the budget"),
        ({"match": "parameters", "like": {"method": "lora"}},
         {"method": ["lora", "series"], "place": {"values": {"q": {"adapter.sites": ["attn.q"]},
                                                             "v": {"adapter.sites": ["attn.v"]}},
                                                  "when": {"method": "lora"}}}, "runs of different cost"),
        ({"match": "parameters", "to": 1e6}, {"adapter": {"mam": [{"method": "lora"}, {"method": "prefix"}]}},
         "has no one size"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_is_refused(
    place: Path, budget: dict[str, Any], axes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _check(place, budget, axes)
    assert said in str(caught.value)
