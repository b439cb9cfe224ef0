"""A cohort's members train as each would alone, and none touches another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm_adapters.data.collate import collate_packed
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import TrainingError
from llm_adapters.model.packing_trial import PROBE, PROBE_SHARED
from llm_adapters.train import TrainResult
from llm_adapters.train import batches as batches_module
from llm_adapters.train import cohort as cohort_module
from llm_adapters.train.joint import joint_gradients, passes
from llm_adapters.train.stepper import NotFinite
from tiny import gap, small, tiny_model
from tiny_cohort import Recipe, alone, eight, together
from tiny_training import checkpoints, examples, metrics, same


def _expect_as_alone(recipes: list[Recipe], place: Path, family: str = "llama", **options: Any) -> None:
    outcomes, states = together(recipes, place / "cohort", model=tiny_model(family), **options)
    for recipe, outcome, state in zip(recipes, outcomes, states, strict=True):
        expected, own = alone(recipe, place / "alone", model=tiny_model(family))
        assert isinstance(outcome, TrainResult)
        assert (outcome.steps, outcome.tokens, outcome.best_step) == (
            expected.steps, expected.tokens, expected.best_step,
        )  # fmt: skip
        found, wanted = (metrics(place / side / recipe.name) for side in ("cohort", "alone"))
        assert [row.keys() for row in found] == [row.keys() for row in wanted]
        for key in ("loss", "grad_norm", "learning_rate", "tokens", "validation_loss"):
            values = [[row[key] for row in rows if key in row] for rows in (found, wanted)]
            assert values[0] == pytest.approx(values[1], rel=1e-5), (recipe.name, key)
        assert max(gap(state[key], own[key]) for key in own) < 1e-4, recipe.name


@pytest.mark.parametrize("rows", [8, 64])
def test_the_cohort_of_eight_is_eight_trainings(tmp_path: Path, rows: int) -> None:
    _expect_as_alone(eight(), tmp_path, rows=rows)


@pytest.mark.parametrize("family", ["gptj", "bloom", "qwen2"])
def test_other_models_padded_or_packed(tmp_path: Path, family: str) -> None:
    recipes = [
        Recipe("lora", small("lora"), settings={"batch_size": 3, "epochs": 1}),
        Recipe("prefix", small("prefix"), seed=1, settings={"epochs": 1}),
        Recipe("series", small("series"), seed=2, settings={"epochs": 1}),
    ]
    _expect_as_alone(recipes, tmp_path, family, rows=19)


def _long(count: int) -> list[Encoded]:
    rows = [list(range(3 + i, 33 + i)) for i in range(count)]
    return [Encoded(ids, [-100] * (20 - i) + ids[20 - i :], truncated=False) for i, ids in enumerate(rows)]


def test_members_differ_in_batches_lengths_steps_schedules_and_patience(tmp_path: Path) -> None:
    by_heart = Recipe("patient", small("lora"), rows=examples(8), held_out=8).having(
        epochs=20, validate_every=2, patience=3
    )
    recipes = [
        by_heart,
        Recipe("short", small("series"), seed=1).having(steps=3, batch_size=5, micro_batch=2),
        Recipe("long", small("prompt"), rows=_long(7), seed=2).having(batch_size=3, schedule="cosine", epochs=4),
        Recipe("judged", small("prefix"), held_out=5, seed=3).having(max_grad_norm=None, weight_decay=0.1),
        Recipe("deep", small("parallel"), seed=4).having(gradient_checkpointing=True, packing=False),
    ]
    _expect_as_alone(recipes, tmp_path)
    result = alone(by_heart, tmp_path / "again")[0]
    assert result.best_step is not None
    assert result.best_step < result.steps < 20


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_examples_that_begin_alike(tmp_path: Path, micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their beginning is computed and dropped once, in passes of one member and of several, but never for a prefix."""
    seen: list[list[int]] = []

    def watched(rows: Any, beginnings: Any) -> Any:
        seen.extend(beginnings)
        return collate_packed(rows, beginnings)

    rows = [Encoded([*range(20, 40), 3 + i, 50 + i], [-100] * 21 + [50 + i], truncated=False) for i in range(8)]
    recipes = [
        Recipe("lora", small("lora", dropout=0.4)),
        Recipe("prefix", small("prefix"), seed=1),
        Recipe("longer", small("series"), seed=2, settings={"epochs": 3}),
        Recipe("also", small("lora", dropout=0.2), seed=3),
    ]
    recipes = [
        replace(each, rows=rows, held_out=rows[:4]).having(validate_every=1, micro_batch=micro_batch)
        for each in recipes
    ]
    monkeypatch.setattr(batches_module, "collate_packed", watched)
    together(recipes, tmp_path / "watched", rows=8)
    assert ([0] + [20] * 7 in seen) == (micro_batch == 8)
    assert ([0, 20, 0, 0, 0, 20, 0, 20] in seen) == (micro_batch == 2)  # the second pair is the prefix's
    _expect_as_alone(recipes, tmp_path, rows=8)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_draws_what_it_draws_alone_with_the_same_micro_batch(tmp_path: Path, checkpointing: bool) -> None:
    settings = {"micro_batch": 3, "gradient_checkpointing": checkpointing}
    recipes = [
        Recipe("much", small("lora", dropout=0.5), seed=1, settings=settings),
        Recipe("less", small("houlsby", dropout=0.3), seed=2, settings=settings),
        Recipe("none", small("prefix"), seed=3, settings=settings),
    ]
    _expect_as_alone(recipes, tmp_path, rows=9)
    for recipe in recipes:  # and goes on drawing where it would
        states = [
            checkpoints(place)[f"step-{6}"]["random.safetensors"]
            for place in _saved(recipe.having(checkpoint_every=6), recipes, tmp_path)
        ]
        assert same(*states)


def _saved(recipe: Recipe, recipes: list[Recipe], place: Path) -> list[Path]:
    alone(recipe, place / "saved")
    cohort = [each.having(checkpoint_every=6) for each in recipes]
    together(cohort, place / f"saved-{recipe.name}", rows=9)
    return [place / "saved" / recipe.name, place / f"saved-{recipe.name}" / recipe.name]


@pytest.mark.parametrize("rows", [8, 64])
def test_a_member_without_a_finite_loss_leaves_and_the_others_keep_their_bits(tmp_path: Path, rows: int) -> None:
    """Bit equal to a cohort in which it ends, healthy, with the step in which it fails; one by one, or all at once."""
    recipes = [each.having(checkpoint_every=2) for each in eight()]
    spoilt = {"high": 0, "prefix": 0, "parallel": 3}
    brief = [each.having(steps=max(1, spoilt[each.name])) if each.name in spoilt else each for each in recipes]
    wanted = together(brief, tmp_path / "wanted", rows=rows)[1]

    def spoil(adapters: dict[str, Any]) -> None:
        for name, step in spoilt.items():
            if step == 0:
                _fill(adapters[name])
        seen.update(adapters)

    seen: dict[str, Any] = {}

    def on_step(member: int, row: dict[str, float]) -> None:
        name = recipes[member].name
        if spoilt.get(name) == row["step"] + 1:
            _fill(seen[name])

    outcomes, states = together(recipes, tmp_path / "found", spoil=spoil, on_step=on_step, rows=rows)
    for recipe, outcome, state, other in zip(recipes, outcomes, states, wanted, strict=True):
        folder = tmp_path / "found" / recipe.name
        if recipe.name not in spoilt:
            assert isinstance(outcome, TrainResult)
            assert outcome.steps == 6
            assert same(state, other)
            assert metrics(folder) == metrics(tmp_path / "wanted" / recipe.name)
            continue
        step = max(1, spoilt[recipe.name])
        assert isinstance(outcome, TrainingError)
        assert f"in step {step}, on the rows" in str(outcome)
        record = json.loads((folder / "failed.json").read_text())
        assert record == {"step": step, "error": str(outcome)}
        assert len(metrics(folder)) == step - 1
    again, unchanged = together(
        recipes, tmp_path / "found", ended={each.name: 6 for each in recipes if each.name not in spoilt}, rows=rows
    )
    assert [type(outcome) for outcome in again] == [
        TrainingError if each.name in spoilt else type(None) for each in recipes
    ]
    assert str(again[1]) == str(outcomes[1])
    assert len(unchanged) == 8


def _fill(adapter: nn.Module) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(float("inf"))


@pytest.mark.parametrize("rows", [8, 64])
def test_a_learning_rate_that_blows_up_touches_nobody(tmp_path: Path, rows: int) -> None:
    recipes = eight()
    wild = [replace(each, rate=1e6) if each.name == "fast" else each for each in recipes]
    together(wild, tmp_path / "cohort", rows=rows)
    losses = {each.name: [row["loss"] for row in metrics(tmp_path / "cohort" / each.name)] for each in recipes}
    assert losses["fast"][2:] == pytest.approx([losses["fast"][2]] * 4)  # saturated: nothing is left to learn from
    for recipe in recipes[:-1]:
        alone(recipe, tmp_path / "alone")
        wanted = [row["loss"] for row in metrics(tmp_path / "alone" / recipe.name)]
        assert losses[recipe.name] == pytest.approx(wanted, rel=1e-5)


def test_a_validation_that_is_no_number_fails_its_member_alone(tmp_path: Path) -> None:
    recipes = [replace(eight()[0], held_out=4).having(validate_every=2), eight()[2]]
    seen: dict[str, Any] = {}

    def on_step(member: int, row: dict[str, float]) -> None:
        if member == 0 and row["step"] == 4:
            _fill(seen["low"])

    outcomes, _ = together(recipes, tmp_path, spoil=seen.update, on_step=on_step)
    assert isinstance(outcomes[0], TrainingError)
    assert "validation loss is nan after step 4, on the validation rows 1, 2, 3, 4" in str(outcomes[0])
    assert isinstance(outcomes[1], TrainResult)
    assert json.loads((tmp_path / "low" / "failed.json").read_text())["step"] == 4


def test_a_member_that_fails_leaves_a_checkpoint_to_go_on_from_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe("m", small("lora", dropout=0.3)).having(checkpoint_every=4), eight()[2]]
    calls: list[int] = []

    def spoilt(*given: Any) -> list[float | NotFinite]:
        calls.append(0)
        found = joint_gradients(*given)
        return [NotFinite("the loss is nan", [7]), *found[1:]] if len(calls) == 4 else found

    monkeypatch.setattr(cohort_module, "joint_gradients", spoilt)
    (failed, healthy), _ = together(recipes, tmp_path, rows=8)
    assert isinstance(healthy, TrainResult)
    assert "in step 4, on the rows 7 of" in str(failed)
    assert f"last good checkpoint is '{tmp_path / 'm' / 'checkpoints' / 'step-3'}'" in str(failed)
    result, state = alone(recipes[0], tmp_path)
    assert result.resumed == [3]
    _, wanted = alone(recipes[0], tmp_path / "whole")
    assert metrics(tmp_path / "m") == metrics(tmp_path / "whole" / "m")
    assert same(state, wanted)


def _limited(rows: int, failure: RuntimeError, calls: list[int]) -> nn.Module:
    """A model that half way through runs out of memory with more than so many rows."""
    model = tiny_model("llama")

    def check(_module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if options.get("documents", PROBE) in (PROBE, PROBE_SHARED):
            return  # the trial before the training
        calls.append(sum(map(len, options["documents"])))
        if calls[-1] > rows:
            raise failure

    model.model.layers[1].register_forward_pre_hook(check, with_kwargs=True)
    return model


def test_out_of_memory_the_joint_pass_shrinks_and_dropout_draws_the_same(tmp_path: Path) -> None:
    recipes = [
        Recipe(f"m{i}", small("lora", dropout=0.3), seed=i).having(micro_batch=2, checkpoint_every=3) for i in range(4)
    ]
    calls: list[int] = []
    notes: list[str] = []
    model = _limited(4, torch.OutOfMemoryError("CUDA out of memory."), calls)
    outcomes, _ = together(recipes, tmp_path / "cohort", model=model, rows=8, notes=notes)
    assert calls[:2] == [8, 4]
    assert max(calls[1:]) == 4
    assert notes == ["out of memory with 8 rows at a time: going on with 4; the batch stays the same"]
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        assert isinstance(outcome, TrainResult)
        assert outcome.micro_batch == 2
        alone(recipe, tmp_path / "alone")
        folders = (tmp_path / side / recipe.name for side in ("cohort", "alone"))
        found, wanted = ([row["loss"] for row in metrics(folder)] for folder in folders)
        assert found == pytest.approx(wanted, rel=1e-5)
        position = json.loads((tmp_path / "cohort" / recipe.name / "checkpoints/step-6/position.json").read_text())
        assert position["position"]["joint_rows"] == 4
    more = [recipe.having(checkpoint_every=4) for recipe in recipes]  # no effect on what is trained
    for recipe in recipes:  # as if killed after step 3
        _remove(tmp_path / "cohort" / recipe.name / "checkpoints" / "step-6")
    calls.clear()
    together(more, tmp_path / "cohort", model=_limited(4, torch.OutOfMemoryError("CUDA"), calls), rows=8)
    assert max(calls) == 4


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_one_row_that_does_not_fit_stops_all(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="single row"):
        together(eight()[:2], tmp_path, model=_limited(0, torch.OutOfMemoryError("CUDA"), []))


def test_a_base_with_dropout_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    recipes = [each.having(steps=3) for each in eight()[:2]]
    together(recipes, tmp_path / "gpt2", model=tiny_model("gpt2"), notes=notes)
    assert any("the base itself has dropout" in note for note in notes)
    notes.clear()
    together(recipes, tmp_path / "llama", notes=notes)
    assert notes == []


@pytest.mark.parametrize("rows", [1, 4, 5, 100])
def test_passes_keep_the_order_and_the_limit(rows: int) -> None:
    pieces = [[["a1"], ["a2"], ["a3"]], [["b1", "b1"]], [["c1", "c1"], ["c2"]]]
    found = list(passes(pieces, rows))
    assert [piece for group in found for member, piece in group if member == 0] == pieces[0]
    assert sorted(str(piece) for group in found for _, piece in group) == sorted(str(p) for own in pieces for p in own)
    assert all(len({member for member, _ in group}) == len(group) for group in found)
    assert all(sum(len(piece) for _, piece in group) <= max(rows, 2) for group in found)
    assert len(found) == {1: 6, 4: 4, 5: 3, 100: 3}[rows]
