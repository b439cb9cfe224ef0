import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import llm_adapters as la
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import DataError, TrainingError
from llm_adapters.train import total_steps, train
from tiny import tiny_model
from tiny_training import examples, metrics, tiny_training

NO_DROPOUT = la.method("lora", rank=4)


def _train(folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    _, state = tiny_training(folder, **options)
    return state, metrics(folder)


def test_the_loss_falls_and_every_step_is_logged(tmp_path: Path) -> None:
    _, rows = _train(tmp_path, epochs=10)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert sum(row["loss"] for row in rows[-5:]) < 0.7 * sum(row["loss"] for row in rows[:5])
    assert rows[0]["learning_rate"] == pytest.approx(5e-3)


def test_one_seed_gives_bit_equal_adapters_and_another_seed_does_not(tmp_path: Path) -> None:
    first, _ = _train(tmp_path / "a", seed=1)
    again, _ = _train(tmp_path / "b", seed=1)
    other, _ = _train(tmp_path / "c", seed=2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    _, whole = _train(tmp_path / "a", recipe=NO_DROPOUT)
    _, split = _train(tmp_path / "b", recipe=NO_DROPOUT, micro_batch=3)
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in split] == pytest.approx([row[key] for row in whole], rel=1e-4)


def test_checkpoints_hold_the_adapter_and_its_moments(tmp_path: Path) -> None:
    state, _ = _train(tmp_path, checkpoint_every=6)
    last = tmp_path / "checkpoints" / "step-6"
    saved = load_file(last / "adapter.safetensors")
    assert all(torch.equal(saved[key], state[key]) for key in state)
    moments = load_file(last / "optimizer.safetensors")
    assert {key.rpartition("/")[2] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(moments) == 3 * len(state)
    assert json.loads((last / "position.json").read_text())["position"]["step"] == 6


def test_steps_count_partial_batches_and_obey_the_cap() -> None:
    assert total_steps(10, TrainSection(epochs=1, batch_size=4)) == 3
    assert total_steps(10, TrainSection(epochs=3, batch_size=4)) == 9
    assert total_steps(10, TrainSection(epochs=3, batch_size=4, steps=5)) == 5


def test_examples_without_any_label_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = la.attach(model, la.method("lora"), "a")
    rows = [Encoded([3, 4], [-100, -100], truncated=True)]
    with pytest.raises(DataError, match="max_length"):
        train(model, adapter, rows, TrainSection(), learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path)


def test_what_is_left_out_and_a_warm_up_that_does_not_end_are_said(tmp_path: Path) -> None:
    rows = [*examples(9), Encoded([3, 4, 5], [-100] * 3, truncated=True)]
    model, notes = tiny_model("llama"), list[str]()
    adapter = la.attach(model, la.method("lora", rank=2), "a")
    settings = TrainSection.parse({"epochs": 1, "batch_size": 4, "warmup": 100}, where="test")
    train(
        model, adapter, rows, settings, learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path, on_note=notes.append
    )  # fmt: skip
    assert notes == [
        "1 of 10 training examples have no label left, and are left out",
        "all 3 steps are warm-up (train.warmup is 100): the learning rate only rises",
    ]


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("packing", [True, False])
def test_batches_that_are_padded_for_want_of_a_way_to_pack_are_said(family: str, packing: bool, tmp_path: Path) -> None:
    model, notes = tiny_model(family), list[str]()
    adapter = la.attach(model, la.method("lora", rank=2), "a")
    settings = TrainSection.parse({"epochs": 1, "batch_size": 4, "warmup": 1, "packing": packing}, where="test")
    train(
        model, adapter, examples(8), settings, learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path,
        on_note=notes.append,
    )  # fmt: skip
    assert any("batches are padded" in note for note in notes) == (family == "bloom" and packing)


def test_a_loss_that_is_no_number_stops_before_the_step_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = la.attach(model, la.method("lora"), "a")
    before = {key: value.clone() for key, value in adapter.state_dict().items()}
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    recipe = TrainSection(gradient_checkpointing=True)
    with pytest.raises(TrainingError, match="learning rate"):
        train(model, adapter, examples(24), recipe, learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in adapter.state_dict().items())
    assert not model.training
    assert not model.is_gradient_checkpointing


def test_a_validation_loss_that_is_no_number_names_its_rows_and_the_last_checkpoint(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    adapter = la.attach(model, la.method("lora"), "a")
    with torch.no_grad():
        model.get_input_embeddings().weight[60].fill_(float("nan"))
    bad, none = Encoded([3, 60, 7, 8], [-100, -100, 7, 8], False), Encoded([3, 4], [-100, -100], True)
    recipe = TrainSection(batch_size=4, micro_batch=1, validate_every=3, checkpoint_every=2)
    with pytest.raises(TrainingError) as failure:
        train(
            model, adapter, examples(24), recipe, learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path,
            validation=[none, *examples(3), bad], validation_rows=[2, 4, 8, 16, 32],
        )  # fmt: skip
    assert "after step 3, on the validation rows 32, and the last good checkpoint is" in str(failure.value)
    assert str(tmp_path / "checkpoints" / "step-2") in str(failure.value)


def test_a_mixed_precision_left_by_something_else_does_not_touch_the_base(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(mixed_precision="bf16")
    try:
        model = tiny_model("llama")
        ids = torch.arange(3, 13)[None]
        before = model(ids).logits
        adapter = la.attach(model, la.method("lora"), "a")
        train(model, adapter, examples(8), TrainSection(), learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path)
        la.detach(model)
        assert torch.equal(model(ids).logits, before)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
