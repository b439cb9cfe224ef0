"""The studies that come with the project, on the shapes of their models: they expand, and nothing is wrong in them."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_adapters.adapters.base import Base
from llm_adapters.config.files import read_yaml
from llm_adapters.config.schema import ModelSection
from llm_adapters.model import find_sites
from llm_adapters.study.bases import Bases
from llm_adapters.study.budget import matched
from llm_adapters.study.expand import Trial, expand, unique
from llm_adapters.study.prepare import prepare
from llm_adapters.study.spec import read_spec

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
SHAPES = {
    "huggyllama/llama-7b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "layers": 32},
    "huggyllama/llama-13b": {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "layers": 40},
    "bigscience/bloomz-7b1": {"model_type": "bloom", "hidden_size": 4096, "layers": 30},
    "EleutherAI/gpt-j-6b": {"model_type": "gptj", "hidden_size": 4096, "layers": 28, "rotary_dim": 64},
    "smollm2-135m-instruct": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "layers": 30,
                              "heads": 9, "num_key_value_heads": 3},
}  # fmt: skip
COUNTS = {"placement": 26, "configuration": 16, "table3": 4, "table4": 4, "distribution": 8, "equal-budget": 12,
          "paper/placement": 9, "paper/configuration": 16, "paper/table3": 16, "paper/table4": 16,
          "paper/distribution": 8, "paper/equal-budget": 12}  # fmt: skip

PUBLISHED_COMMONSENSE = {"paper/table4", "paper/distribution"}  # larger than what lies in a developer's folder

needs_data = pytest.mark.skipif(not os.environ.get("LLM_ADAPTERS_DATA"), reason="LLM_ADAPTERS_DATA names no folder")


def _base(section: ModelSection) -> Base:
    given = dict(SHAPES[section.source])
    layers, heads = given.pop("layers"), given.pop("heads", 32)
    config = AutoConfig.for_model(**given, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Base(model, find_sites(model))


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases(_base)


def test_every_study_is_counted() -> None:
    files = {str(path.relative_to(STUDIES).with_suffix("")) for path in STUDIES.rglob("*.yaml")}
    assert files == {*COUNTS, "small"}  # `small` is the run that the others vary


def _expanded(name: str, bases: Bases) -> list[Trial]:
    """The runs of a study, without a look at its data."""
    path = STUDIES / f"{name}.yaml"
    study, problems = read_spec(read_yaml(path), path.parent)
    trials, of_runs = expand(study, bases)
    trials, of_budget = matched(study, trials, bases)
    trials, twins = unique(trials)
    assert problems + of_runs + of_budget + twins == []
    return trials


@pytest.mark.parametrize("name", COUNTS)
def test_a_study_expands_without_a_mistake(name: str, bases: Bases) -> None:
    trials = _expanded(name, bases)
    assert len(trials) == COUNTS[name]
    assert all(trial.parameters for trial in trials)


@needs_data
@pytest.mark.parametrize("name", [name for name in COUNTS if name not in PUBLISHED_COMMONSENSE])
def test_its_data_are_there(name: str, bases: Bases) -> None:
    assert all(trial.steps and trial.rows for trial in prepare(STUDIES / f"{name}.yaml", bases=bases).trials)


@pytest.mark.parametrize("name", ["equal-budget", "paper/equal-budget"])
def test_equal_budgets_are_equal(name: str, bases: Bases) -> None:
    counts = {trial.axes["method"]: trial.parameters for trial in _expanded(name, bases)}
    assert len(counts) == 4
    assert max(counts.values()) / min(counts.values()) < 1.04, counts


@needs_data
def test_the_placement_study_for_two_cores_ends_in_about_an_hour(bases: Bases) -> None:
    trials = prepare(STUDIES / "placement.yaml", bases=bases).trials
    tokens = sum(trial.steps * 8 * 169 for trial in trials)  # 169 tokens an example, on average
    seconds = tokens / 300 + sum(trial.rows for trial in trials) / 1.5
    assert 50 < seconds / 60 < 80
    assert len({trial.axes["method"] for trial in trials if "placement" in trial.axes}) == 4


def test_table_3_takes_the_series_recipe_of_the_model(bases: Bases) -> None:
    trials = _expanded("paper/table3", bases)
    series = {
        trial.axes["model"]: trial.config.adapter[0].name() for trial in trials if trial.axes["method"] == "series"
    }
    assert series == {"BLOOMz-7B": "series", "GPT-J-6B": "series", "LLaMA-7B": "series_input",
                      "LLaMA-13B": "series_input"}  # fmt: skip
    rates = {trial.axes["method"]: trial.config.train.learning_rate for trial in trials}
    assert rates == {"prefix": 0.03, "series": 3e-4, "parallel": 3e-4, "lora": 3e-4}
