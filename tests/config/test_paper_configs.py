"""The paper's recipes on the shapes of the paper's models: they attach, and train what the formulas say."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_adapters.adapters.attach import attach
from llm_adapters.runs.run import read_config

PAPER = Path(__file__).parents[2] / "configs" / "paper"
SHAPES = {
    "llama-7b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "layers": 32, "heads": 32},
    "llama-13b": {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "layers": 40, "heads": 40},
    "bloomz-7b1": {"model_type": "bloom", "hidden_size": 4096, "layers": 30, "heads": 32},
    "gpt-j-6b": {"model_type": "gptj", "hidden_size": 4096, "layers": 28, "heads": 16, "rotary_dim": 64},
}


def _trained(recipe: str, shape: str) -> int:
    given = dict(SHAPES[shape])
    layers, heads = given.pop("layers"), given.pop("heads")
    config = AutoConfig.for_model(**given, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        adapter = attach(model, list(read_config(PAPER / f"{recipe}.yaml").adapter), "a")
    return adapter.count()


@pytest.mark.parametrize("task", ["math", "commonsense"])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora_of_rank_32(shape: str, task: str) -> None:
    width, layers = int(SHAPES[shape]["hidden_size"]), int(SHAPES[shape]["layers"])
    ffn = int(SHAPES[shape].get("intermediate_size", 4 * width))
    attention = [(width, 3 * width)] if shape == "bloomz-7b1" else [(width, width)] * 3
    expected = layers * sum(32 * (a + b) for a, b in [*attention, (width, ffn), (ffn, width)])
    assert _trained(f"lora-{task}", shape) == expected


@pytest.mark.parametrize("task", ["math", "commonsense"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bottlenecks_of_256(shape: str, task: str) -> None:
    width, layers = int(SHAPES[shape]["hidden_size"]), int(SHAPES[shape]["layers"])
    ffn = int(SHAPES[shape].get("intermediate_size", 4 * width))
    assert _trained(f"parallel-{task}", shape) == layers * 256 * 2 * (width + ffn)
    if shape.startswith("llama") and task == "math":
        assert _trained("series-math-llama", shape) == layers * 256 * 4 * width  # before up and before gate
    else:
        assert _trained(f"series-{task}", shape) == layers * 256 * 2 * width


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_virtual_tokens(shape: str) -> None:
    width, layers = int(SHAPES[shape]["hidden_size"]), int(SHAPES[shape]["layers"])
    assert _trained("prefix-math", shape) == _trained("prefix-commonsense", shape) == layers * 10 * 2 * width


BOTTLENECK = {
    "bottleneck": 256,
    "nonlinearity": "tanh",
    "init": "reference",
    "bias": False,
    "scale": 1.0,
    "dropout": 0.0,
}
SIZES: dict[str, dict[str, object]] = {
    "Lora": {"rank": 32, "alpha": 64.0, "dropout": 0.05, "rslora": False},
    "Prefix": {"tokens": 10, "reparametrization": 0},
    **dict.fromkeys(("Series", "SeriesInput", "Parallel"), BOTTLENECK),
}


def test_the_recipes_are_those_of_the_repository() -> None:
    for path in sorted(PAPER.glob("*.yaml")):
        config, prefix = read_config(path), path.stem.startswith("prefix")
        train, data = config.train, config.data
        assert (train.batch_size, train.micro_batch, train.epochs) == (8 if prefix else 16, 4, 5 if prefix else 3), path
        assert (train.learning_rate, train.warmup, train.schedule) == (0.03 if prefix else 3e-4, 100, "linear"), path
        assert (data.max_length, data.train_on, data.template) == (256, "all", "paper"), path
        assert data.train == ("math10k" if "-math" in path.stem else "commonsense170k"), path
        assert config.name == path.stem
        assert train.weight_decay == 0.0, path
        judged = {"prefix-math": (120, 10), "series-math-llama": (120, 80)}
        assert (data.validation, train.validate_every) == judged.get(path.stem, (None, None)), path
        (recipe,) = config.adapter
        sizes = SIZES[type(recipe).__name__]
        assert {key: getattr(recipe, key) for key in sizes} == sizes, path
