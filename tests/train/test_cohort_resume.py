"""Killed anywhere, a cohort goes on and all its members end with the bits of one that was left alone."""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from killing import killed_at_call
from llm_adapters.errors import OutputError, Stopped
from llm_adapters.train import Stop, TrainResult
from llm_adapters.train.checkpoint import Checkpoints
from llm_adapters.train.together import common_step
from tiny import small
from tiny_cohort import Recipe, alone, together
from tiny_training import checkpoints, examples, metrics, same

KILLS = 16
FAILS = 9
RECIPES = [
    Recipe("drops", small("lora", dropout=0.3), seed=1).having(epochs=8, micro_batch=2, checkpoint_every=5),
    Recipe("brief", small("series"), seed=2).having(epochs=4, steps=7, keep_checkpoints=1),
    Recipe("judged", small("lora", rank=2), rows=examples(8), held_out=8, seed=3).having(
        epochs=20, validate_every=2, patience=3
    ),
    Recipe("bad", small("prefix"), seed=4).having(epochs=8),
]


def _train(place: Path, stop: Stop | None = None, on_step: Callable[[str, int], None] | None = None) -> None:
    """The cohort, with results kept as a run keeps them; ``bad`` gets an infinite parameter after step FAILS - 1."""
    adapters: dict[str, Any] = {}

    def step(member: int, row: dict[str, float]) -> None:
        name = RECIPES[member].name
        if name == "bad" and row["step"] == FAILS - 1:
            with torch.no_grad():
                for parameter in adapters[name].parameters():
                    parameter.fill_(float("inf"))
        if on_step is not None:
            on_step(name, int(row["step"]))

    def end(member: int, result: TrainResult) -> None:
        folder = place / RECIPES[member].name
        save_file(dict(adapters[RECIPES[member].name].state_dict()), folder / "final-fresh")
        os.replace(folder / "final-fresh", folder / "final.safetensors")
        (folder / "fresh.json").write_text(json.dumps(asdict(result)))
        os.replace(folder / "fresh.json", folder / "result.json")

    ended = {}
    for recipe in RECIPES:
        if (place / recipe.name / "result.json").exists():
            ended[recipe.name] = json.loads((place / recipe.name / "result.json").read_text())["steps"]
    together(RECIPES, place, ended=ended, spoil=adapters.update, on_step=step, on_end=end, stop=stop, rows=32)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    _train(place)
    return place


def _expect_same(place: Path, undisturbed: Path) -> None:
    for recipe in RECIPES:
        one, other = place / recipe.name, undisturbed / recipe.name
        assert metrics(one) == metrics(other), recipe.name
        assert same(checkpoints(one), checkpoints(other)), recipe.name
        assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
        if recipe.name == "bad":
            assert json.loads((one / "failed.json").read_text())["step"] == FAILS
        else:
            assert same(load_file(one / "final.safetensors"), load_file(other / "final.safetensors")), recipe.name


def test_left_alone_each_ends_when_it_should(undisturbed: Path) -> None:
    rows = {recipe.name: metrics(undisturbed / recipe.name) for recipe in RECIPES}
    steps = {name: sum("loss" in row for row in own) for name, own in rows.items()}
    assert steps["drops"] == 24
    assert steps["brief"] == 7
    assert steps["bad"] == FAILS - 1
    assert 7 < steps["judged"] < 20
    assert list(checkpoints(undisturbed / "brief")) == ["step-7"]


def test_a_cohort_killed_many_times_ends_with_the_same_bits(tmp_path: Path, undisturbed: Path) -> None:
    rng, kills, stop = random.Random(0), 0, Stop()

    def ask(_name: str, step: int) -> None:
        stop.asked = step == 2

    with pytest.raises(Stopped):  # so that one begins from checkpoints whose validation is still due
        _train(tmp_path, stop=stop, on_step=ask)
    while kills < KILLS:
        code = killed_at_call(rng.randrange(1, 90), lambda: _train(tmp_path))
        if code != -signal.SIGKILL:
            assert code == 0
            break
        kills += 1
    assert kills > 8
    _train(tmp_path)
    _expect_same(tmp_path, undisturbed)


def test_asked_to_stop_all_write_the_same_step(tmp_path: Path, undisturbed: Path) -> None:
    stop = Stop()

    def ask(name: str, step: int) -> None:
        stop.asked = stop.asked or (name == "drops" and step == 6)

    with pytest.raises(Stopped, match="after step 6 of the cohort"):
        _train(tmp_path, stop=stop, on_step=ask)
    assert all((tmp_path / recipe.name / "checkpoints" / "step-6").is_dir() for recipe in RECIPES)
    assert "loss" in metrics(tmp_path / "judged")[-1]  # validated in the next session
    _train(tmp_path)
    for name in ("drops", "judged"):
        assert metrics(tmp_path / name) == metrics(undisturbed / name)
    assert same(load_file(tmp_path / "judged/final.safetensors"), load_file(undisturbed / "judged/final.safetensors"))


def test_a_member_goes_on_by_itself(tmp_path: Path) -> None:
    """Its folder is one of a training alone."""
    recipe = RECIPES[0]

    def cut(member: int, row: dict[str, float]) -> None:
        if member == 0 and row["step"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(RECIPES[:3], tmp_path / "cohort", on_step=cut, rows=8)
    result, _ = alone(recipe, tmp_path / "cohort")
    assert result.resumed == [10]
    alone(recipe, tmp_path / "alone")
    losses = [[row["loss"] for row in metrics(tmp_path / side / "drops")] for side in ("cohort", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    together(RECIPES[:2], tmp_path, rows=8)
    with pytest.raises(OutputError, match="recipe changed"):
        together([RECIPES[0].having(warmup=9), RECIPES[1]], tmp_path, rows=8, ended={"brief": 7})


def _having(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, 99, print)
    for step in steps:
        checkpoints.save(step, {"a": b"x"}, best=None)
    return checkpoints


def test_the_common_step(tmp_path: Path) -> None:
    one, two, three = _having(tmp_path / "1", 4, 8, 12), _having(tmp_path / "2", 4, 8), _having(tmp_path / "3", 4, 6)
    notes: list[str] = []
    assert common_step([(one, None), (two, None)], notes.append) == 8
    assert common_step([(one, None), (two, None), (three, None)], notes.append) == 4
    assert common_step([(one, None), (two, None), (three, 6)], notes.append) == 8  # it had ended by then
    assert common_step([(one, None), (three, 10)], notes.append) == 12
    assert common_step([(two, 9), (three, 6)], notes.append) == 9  # nobody is left
    assert common_step([(two, None), (three, 9)], notes.append) == 4  # its end came after what the other still has
    assert common_step([(two, None), (_having(tmp_path / "4"), None)], notes.append) == 0
    assert notes == []
    (tmp_path / "2" / "step-8" / "a").write_bytes(b"y")
    assert common_step([(one, None), (two, None)], notes.append) == 4
    assert len(notes) == 1
    assert "step-8' cannot be used: 'a' is truncated or was changed" in notes[0]


def test_a_lost_best_alone_does_not_send_a_cohort_back_to_the_beginning(tmp_path: Path) -> None:
    one, two = _having(tmp_path / "1", 4, 6), _having(tmp_path / "2", 4)
    two.save(6, {"a": b"x"}, best=4)
    (tmp_path / "2" / "step-4" / "a").write_bytes(b"y")
    notes: list[str] = []
    assert common_step([(one, None), (two, None)], notes.append) == 6
    assert ["it is lost, and the best is looked for anew" in note for note in notes] == [True, False]
    assert "step-4' cannot be used" in notes[1]
