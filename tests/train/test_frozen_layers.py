"""Layers below the lowest adapter are computed once: the same training up to rounding, the same bits after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import llm_adapters as la
from llm_adapters.errors import Stopped, TrainingError
from llm_adapters.model import find_sites
from llm_adapters.train import Stop
from llm_adapters.train import frozen_layers as module
from tiny import tiny_model
from tiny_training import metrics, tiny_training

UPPER = la.method("lora", rank=4, layers=[2])
FAMILIES = ("llama", "bloom", "gptj", "gpt2", "gemma3_text", "qwen3")


def _model(family: str = "llama") -> Any:
    kinds = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]} if "gemma3" in family else {}
    without = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    return tiny_model(family, num_hidden_layers=3, **kinds, **without)


def _losses(folder: Path, **options: Any) -> list[float]:
    tiny_training(folder, **{"recipe": UPPER, "epochs": 2, "micro_batch": 3, **options})
    return [row[key] for row in metrics(folder) for key in ("loss", "validation_loss") if key in row]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_all_layers(family: str, tmp_path: Path) -> None:
    plain = _losses(tmp_path / "plain", model=_model(family))
    notes: list[str] = []
    cached = _losses(tmp_path / "cached", model=_model(family), cache_frozen_layers=True, notes=notes)
    assert cached == pytest.approx(plain, rel=1e-5)
    assert any("layers 0 to 1 have no adapter" in note for note in notes)


@pytest.mark.parametrize("recipe", ["prefix", "series", "parallel"])
def test_every_method_that_stands_high_enough(recipe: str, tmp_path: Path) -> None:
    method = la.method(recipe, layers=[1, 2])
    plain = _losses(tmp_path / "plain", recipe=method, model=_model())
    cached = _losses(tmp_path / "cached", recipe=method, model=_model(), cache_frozen_layers=True)
    assert cached == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("options", [{"packing": False}, {"gradient_checkpointing": True}, {"held_out": 6}])
def test_with_padding_checkpointing_and_validation(options: dict[str, Any], tmp_path: Path) -> None:
    plain = _losses(tmp_path / "plain", model=_model(), **options)
    cached = _losses(tmp_path / "cached", model=_model(), cache_frozen_layers=True, **options)
    assert cached == pytest.approx(plain, rel=1e-5)


def test_the_layers_below_are_not_run_again_and_come_back(tmp_path: Path) -> None:
    model = _model()
    blocks = find_sites(model).blocks
    calls = [0, 0, 0]

    def count(layer: int) -> Any:
        def hook(*_: Any) -> None:
            calls[layer] += "forward" not in vars(blocks[layer])

        return hook

    for layer, block in enumerate(blocks):
        block.register_forward_pre_hook(count(layer))
    _losses(tmp_path, model=model, cache_frozen_layers=True, count=24, epochs=8, micro_batch=3)
    tried = 14  # a few passes: whether the model packs, what its head is, and whether the layers below can be left out
    assert 24 <= calls[0] <= 24 + tried
    assert calls[2] >= 8 * 24 / 3
    assert not any("forward" in vars(block) for block in blocks)


def test_a_stopped_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": UPPER, "cache_frozen_layers": True, "epochs": 4}
    _, whole = tiny_training(tmp_path / "whole", model=_model(), **options)
    stop = Stop()

    def after_five(row: dict[str, float]) -> None:
        stop.asked = stop.asked or row["step"] == 5

    with pytest.raises(Stopped):
        tiny_training(tmp_path / "parts", model=_model(), stop=stop, on_step=after_five, **options)
    _, parts = tiny_training(tmp_path / "parts", model=_model(), **options)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _device: 1000)


@pytest.mark.parametrize("recipe", [la.method("lora", rank=4), la.method("prompt")], ids=["lora", "prompt"])
def test_nothing_below_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing is below"):
        _losses(tmp_path, model=_model(), recipe=recipe, cache_frozen_layers=True)


@pytest.mark.usefixtures("scarce")
def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="hidden states of all examples take"):
        _losses(tmp_path, model=_model(), cache_frozen_layers=True)


@pytest.mark.parametrize("family", ["gpt2", "opt"])  # OPT's dropout is no module
def test_a_base_that_drops_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, num_hidden_layers=3)
    with pytest.raises(TrainingError, match="have dropout"):
        _losses(tmp_path, model=model, cache_frozen_layers=True)


def test_another_adapter_below_is_part_of_the_base_unless_it_drops(tmp_path: Path) -> None:
    found = []
    for cached in (False, True):
        model = _model()
        lower = la.attach(model, la.method("series", layers=[0]), "lower")
        for parameter in lower.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        lower.requires_grad_(False)
        found.append(_losses(tmp_path / str(cached), model=model, cache_frozen_layers=cached))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    model = _model()
    la.attach(model, la.method("lora", layers=[0], dropout=0.5), "lower")
    with pytest.raises(TrainingError, match="have dropout"):
        _losses(tmp_path / "drops", model=model, cache_frozen_layers=True)


def test_layers_that_another_library_wraps_are_refused(tmp_path: Path) -> None:
    model = _model()
    block = find_sites(model).blocks[0]
    vars(block)["forward"] = block.forward
    with pytest.raises(TrainingError, match="another library"):
        _losses(tmp_path, model=model, cache_frozen_layers=True)
    assert "forward" in vars(block)


def test_examples_that_no_step_reads_are_not_computed(tmp_path: Path) -> None:
    notes: list[str] = []
    model = _model()
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    find_sites(model).blocks[0].mlp.register_forward_hook(count)
    _losses(tmp_path, model=model, cache_frozen_layers=True, count=400, steps=1, notes=notes)
    assert seen < 40


def test_layers_that_hand_on_more_are_refused(tmp_path: Path) -> None:
    """A layer that also leaves something for a later one: what is cached would not be all."""
    model = _model()
    first, last = find_sites(model).blocks[0], find_sites(model).blocks[2]
    left: list[torch.Tensor] = []
    first.mlp.register_forward_hook(lambda _module, _args, output: left.append(output))
    last.mlp.register_forward_hook(lambda _module, _args, output: output + left.pop())
    with pytest.raises(TrainingError, match="hand on more than hidden states"):
        _losses(tmp_path, model=model, cache_frozen_layers=True)
