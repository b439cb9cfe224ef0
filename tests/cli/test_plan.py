"""``llm-adapters plan`` on a tiny model: what it counts, and what it says when memory does not suffice."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from llm_adapters.cli import app
from llm_adapters.errors import ConfigError, ModelError
from llm_adapters.runs.plan import plan
from llm_adapters.runs.run import read_config
from llm_adapters.train.devices import GPUS, gpu
from tiny_folder import sums, tiny_folder

NF4 = "model.quantization=bnb-nf4"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("plan")
    return [
        f"model.source={tiny_folder(folder / 'model')}",
        f"data.train={sums(folder / 'train.jsonl', 40)}",
        "train.batch_size=8",
        "train.epochs=2",
        "adapter.method=lora",
    ]


def test_this_machine_is_measured(sets: list[str]) -> None:
    notes: list[str] = []
    planned = plan(read_config(None, [*sets, "data.validation=8", "train.micro_batch=3"]), note=notes.append)
    assert (planned.steps, planned.micro_batch, planned.packed) == (8, 3, True)
    assert planned.trained > 0
    assert planned.memory["base weights"] >= 4 * planned.base
    assert planned.memory["adapter, AdamW's moments"] == 12 * planned.trained
    assert planned.fits
    assert 0 < planned.seconds < 60
    assert "measured here" in planned.rate
    assert notes[-1] == "measuring the speed of this machine"


def test_a_named_gpu_needs_no_measurement_and_takes_its_dtype(sets: list[str]) -> None:
    config = read_config(None, sets)
    fast, slow = plan(config, gpu=GPUS["H100"]), plan(config, gpu=GPUS["A100-40GB"])
    assert fast.dtype == "bfloat16"
    assert slow.seconds == pytest.approx(fast.seconds * 989 / 312)
    assert plan(config, gpu=GPUS["T4"]).dtype == "float32"


def test_a_quantised_base_takes_the_memory_of_its_bits(sets: list[str]) -> None:
    plain, small = (plan(read_config(None, [*sets, *more]), gpu=GPUS["T4"]) for more in ([], [NF4]))
    assert small.memory["base weights"] < plain.memory["base weights"]
    assert small.memory["the largest weight, dequantised"] > 0
    assert small.trained == plain.trained


def test_what_does_not_fit_is_said_with_what_would(sets: list[str]) -> None:
    config = read_config(None, sets)
    needed = plan(config, gpu=gpu(None, 1e6, 1)).peak
    small = gpu(None, (needed - 1) / 1e9, 1)
    planned = plan(config, gpu=small)
    assert not planned.fits
    assert planned.mends["train.micro_batch=4"] < planned.peak
    assert planned.mends["train.gradient_checkpointing=true train.micro_batch=8"] < planned.peak
    assert f"{NF4} (the base's weights alone)" in planned.mends
    options = [part for one in sets for part in ("--set", one)]
    shown = CliRunner().invoke(
        app, ["plan", *options, "--gpu-memory", f"{(needed - 1) / 1e9:.9f}", "--gpu-tflops", "1"]
    )
    assert shown.exit_code == 0, shown.output
    assert "This does not fit" in shown.output
    assert "train.micro_batch=4" in shown.output


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="nearest: H100"):
        gpu("H10", None, None)
    with pytest.raises(ConfigError, match="--gpu-tflops"):
        gpu(None, 24, None)
    assert gpu("rtx 4090", None, None) is GPUS["RTX-4090"]
    assert gpu(None, None, None) is None


def test_a_name_and_figures_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="--gpu H100 and figures of a GPU were given"):
        gpu("H100", 24.0, None)


def test_processes_share_the_batch_and_with_fsdp_the_base(sets: list[str]) -> None:
    fsdp = "train.distributed=fsdp"
    config, sharded = (read_config(None, [*sets, "train.micro_batch=8", *more]) for more in ([], [fsdp]))
    alone, of_four, shared = (
        plan(recipe, gpu=GPUS["H100"], processes=processes)
        for recipe, processes in ((config, 1), (config, 4), (sharded, 4))
    )
    assert (alone.micro_batch, of_four.micro_batch) == (8, 2)
    assert (of_four.tokens, of_four.steps) == (alone.tokens, alone.steps)
    assert alone.seconds / 4 <= of_four.seconds < alone.seconds / 3  # not below: each waits for the busiest
    assert of_four.memory["base weights"] == alone.memory["base weights"]
    assert of_four.peak < alone.peak

    base = alone.memory["base weights"]
    model = AutoModelForCausalLM.from_pretrained(sets[0].partition("=")[2], dtype=torch.bfloat16)
    blocks = [sum(p.nbytes for p in layer.parameters()) for layer in model.model.layers]
    assert shared.memory["base weights, one share of 4"] == base // 4
    assert shared.memory["base weights, gathered to compute with"] == base - sum(blocks) + 2 * max(blocks)
    assert plan(sharded, gpu=GPUS["H100"]).memory["base weights"] == base  # one process has nothing to share


def test_what_processes_cannot_be_planned_for(sets: list[str]) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--processes 2 without a GPU"):
            plan(read_config(None, sets), processes=2)
    with pytest.raises(ModelError, match="cannot shard"):
        plan(read_config(None, [*sets, NF4, "train.distributed=fsdp"]), gpu=GPUS["H100"], processes=2)
    options = [part for one in [*sets, "train.distributed=fsdp"] for part in ("--set", one)]
    shown = CliRunner().invoke(app, ["plan", *options, "--gpu", "H100"])
    assert shown.exit_code == 0, shown.output
    assert "--processes N" in shown.output


def test_where_the_base_is_too_large_for_each_sharding_is_named(sets: list[str]) -> None:
    config = read_config(None, sets)
    whole = plan(config, gpu=GPUS["H100"], processes=4)
    planned = plan(config, gpu=gpu(None, (whole.peak - 1) / 1e9, 1), processes=4)
    # Of two blocks both are gathered at once, so that a share comes on top.
    expected = whole.peak + whole.memory["base weights"] // 4
    assert planned.mends["train.distributed=fsdp (the base's weights alone)"] == expected
