"""Two processes train as one, with the base whole on each or shared out; they fail, stop and go on together."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

import llm_adapters as la
from llm_adapters.adapters.method import methods
from llm_adapters.errors import ModelError, Stopped, TrainingError, UserError
from llm_adapters.runs.cohort import execute_cohort
from llm_adapters.runs.run import read_config
from llm_adapters.train import Stop, Team, sharding
from llm_adapters.train.batches import balanced
from llm_adapters.train.randomness import seed_step
from team_of import ended, started, team_of
from tiny import small, tiny_model
from tiny_cohort import Recipe, together
from tiny_quantised import quantised
from tiny_training import checkpoints, examples, metrics, same, tiny_training
from watching import Watching

NO_DROPOUT = la.method("lora", rank=4)
METHODS = ("lora", "prefix", "prompt")
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"distributed": "ddp", "micro_batch": 3},
    "fsdp": {"distributed": "fsdp", "micro_batch": 3},
    "fsdp, checkpointed": {"distributed": "fsdp", "gradient_checkpointing": True},
    "fsdp, padded": {"distributed": "fsdp", "packing": False},
}
COURSE: dict[str, Any] = {"count": 27, "held_out": 7, "validate_every": 3}
"""Steps of 8 and of 3 rows, and pieces of validation that do not share out evenly."""


def _close(folder: Path, to: Path, *, from_step: int = 1) -> None:
    rows, expected = metrics(folder), metrics(to)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for key in ("loss", "grad_norm", "validation_loss"):
        wanted = [row[key] for row in expected if key in row and row["step"] >= from_step]
        assert [row[key] for row in rows if key in row and row["step"] >= from_step] == pytest.approx(wanted, rel=1e-5)


def test_the_loss_curve_and_the_adapter_are_those_of_one_process(tmp_path: Path) -> None:
    alone = {name: tiny_training(tmp_path / name, recipe=small(name), **COURSE)[1] for name in METHODS}

    def work(_rank: int) -> dict[tuple[str, str], Any]:
        found = {}
        for name in METHODS:
            for way, settings in WAYS.items():
                model = tiny_model("llama")
                result, state = tiny_training(
                    tmp_path / f"{name} {way}", recipe=small(name), model=model, **COURSE, **settings
                )
                if "fsdp" in way:
                    of_block = dict(model.model.layers[0].named_parameters())
                    assert all(isinstance(p, DTensor) for p in of_block.values())
                    held = sum(p.to_local().numel() for p in of_block.values() if isinstance(p, DTensor))
                    assert held == sum(p.numel() for p in of_block.values()) / 2
                    assert not any(isinstance(p, DTensor) for p in model.get_submodule("llm_adapters").parameters())
                assert not any(p.grad is not None for p in model.parameters())
                found[name, way] = result, {key: value.numpy() for key, value in state.items()}
        return found

    both = team_of(work)
    for name in METHODS:
        for way in WAYS:
            _close(tmp_path / f"{name} {way}", tmp_path / name)
            (result, state), (other, twin) = (found[name, way] for found in both)
            assert (result.last_loss, result.best_loss) == (other.last_loss, other.best_loss)
            for key, value in state.items():
                assert (value == twin[key]).all()
                assert torch.allclose(torch.from_numpy(value), alone[name][key], atol=1e-5)


def test_so_it_is_for_every_method_and_for_mixtures(tmp_path: Path) -> None:
    recipes: dict[str, Any] = {
        **{name: small(name) for name in methods() if name not in METHODS},
        "lora and parallel": [small("lora", sites=("attn.*",)), small("parallel")],
        "prompt, prefix and series": [small("prompt"), small("prefix"), small("series")],
        "nothing in the first block": small("lora", layers="last:1"),
        "before the first block": small("series", sites=("embed",)),
    }
    course = {"count": 19, "held_out": 7, "epochs": 1}

    def trained(name: str, way: str) -> dict[str, Any]:
        model, settings = tiny_model("llama").double(), WAYS[way] if way else {}
        state = tiny_training(tmp_path / (name + way), recipe=recipes[name], model=model, **course, **settings)[1]
        return {key: value.numpy() for key, value in state.items()}

    alone = {name: trained(name, "") for name in recipes}
    both = team_of(lambda _rank: {(name, way): trained(name, way) for name in recipes for way in ("ddp", "fsdp")})
    for (name, way), state in both[0].items():
        _close(tmp_path / (name + way), tmp_path / name)
        for key, value in state.items():
            assert (value == both[1][name, way][key]).all()
            assert value == pytest.approx(alone[name][key], abs=1e-6), (name, way, key)


@pytest.mark.parametrize("name", ["lora", "series", "parallel"])
def test_killed_it_goes_on_in_another_number_of_processes(tmp_path: Path, name: str) -> None:
    recipe, options = small(name), {"checkpoint_every": 2, "epochs": 2}
    _, whole = tiny_training(tmp_path / "whole", recipe=recipe, **options)

    def killed(rank: int) -> None:
        def at_step_5(row: dict[str, float]) -> None:
            if row["step"] == 5 - rank:  # the other one dies a step earlier, or in the middle of this one
                os.kill(os.getpid(), signal.SIGKILL)

        tiny_training(tmp_path / "pair", recipe=recipe, on_step=at_step_5, distributed="fsdp", **options)

    assert -signal.SIGKILL in ended(started(killed))
    result, adapter = tiny_training(tmp_path / "pair", recipe=recipe, **options)
    assert result.resumed in ([2], [4])
    _close(tmp_path / "pair", tmp_path / "whole")
    assert all(torch.allclose(adapter[key], whole[key], atol=1e-5) for key in whole)

    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "one", recipe=recipe, on_step=_interrupting(3), **options)
    seen = team_of(lambda _rank: tiny_training(tmp_path / "one", recipe=recipe, **options)[0].resumed)
    assert seen == [[2], [2]]
    _close(tmp_path / "one", tmp_path / "whole")


def _interrupting(step: int) -> Callable[[dict[str, float]], None]:
    def interrupt(row: dict[str, float]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return interrupt


def test_as_many_processes_go_on_with_the_same_bits_and_each_with_a_dropout_of_its_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_every": 2, "held_out": 8, "validate_every": 3}

    def work(rank: int) -> tuple[bool, float]:
        _, whole = tiny_training(tmp_path / "whole", **options)
        with pytest.raises((KeyboardInterrupt, TrainingError)):
            tiny_training(tmp_path / "cut", on_step=_interrupting(5) if rank else None, **options)
        result, adapter = tiny_training(tmp_path / "cut", **options)
        assert result.resumed == [4]
        seed_step(0, 3, Team.join())
        return same(adapter, whole), float(torch.rand(()))

    (first, drawn), (second, other) = team_of(work)
    assert first
    assert second
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"))
    assert drawn != other


def test_a_row_that_spoils_the_loss_stops_all_and_is_named(tmp_path: Path) -> None:
    rows = examples(24)
    ids = [row.input_ids for row in rows]
    culprit, token = next((i, t) for i in range(24) for t in ids[i] if sum(t in other for other in ids) == 1)

    def work(_rank: int) -> list[str]:
        said = []
        for way in ("ddp", "fsdp"):
            model = tiny_model("llama")
            with torch.no_grad():
                model.get_input_embeddings().weight[token] = float("nan")
            with pytest.raises(TrainingError) as caught:
                tiny_training(tmp_path / way, model=model, micro_batch=1, distributed=way)
            said.append(f"{caught.value.told} {caught.value.problem}")
        return said

    first, second = team_of(work)
    assert f"on the rows {culprit + 1} of the training data" in first[0]
    for one, other in zip(first, second, strict=True):
        assert one.partition(" ")[2] == other.partition(" ")[2]
        assert one.startswith("False")  # the leader says it
        assert other.startswith("True")
    assert metrics(tmp_path / "ddp") == metrics(tmp_path / "fsdp")


def _forgetful(rows: int) -> nn.Module:
    """A model that runs out of memory with more than so many rows."""
    model = tiny_model("llama")

    def check(_module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if len(options["documents"][0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.layers[1].register_forward_pre_hook(check, with_kwargs=True)
    return model


def test_memory_that_one_lacks_shrinks_the_micro_batch_of_all(tmp_path: Path) -> None:
    tiny_training(tmp_path / "whole", recipe=NO_DROPOUT, held_out=8)

    def work(rank: int) -> tuple[int, list[str]]:
        notes: list[str] = []
        model = _forgetful(3) if rank == 1 else None
        result, _ = tiny_training(tmp_path / "oom", recipe=NO_DROPOUT, held_out=8, model=model, notes=notes)
        return result.micro_batch, notes

    (size, notes), (same_size, silent) = team_of(work)
    assert size == same_size == 2
    assert [note.split(":")[0] for note in notes] == ["out of memory with 4 rows at a time"]
    assert not silent
    _close(tmp_path / "oom", tmp_path / "whole")


def test_over_a_sharded_base_a_lack_of_memory_ends_all_and_is_said(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        try:
            tiny_training(tmp_path / "oom", model=_forgetful(3) if rank == 1 else None, distributed="fsdp")
        except UserError as failure:
            (tmp_path / f"said-{rank}").write_text(f"{failure.told} {failure}")
            raise

    assert ended(started(work)) == [1, 1]
    assert (tmp_path / "said-1").read_text().startswith("False out of memory on process 1")
    assert "another process of this training has ended" in (tmp_path / "said-0").read_text()


@pytest.mark.parametrize("held_out", [0, 8])  # with some, a validation is due when the signal comes
def test_a_signal_to_one_stops_all_after_the_same_step_with_one_checkpoint(tmp_path: Path, held_out: int) -> None:
    options = {"recipe": NO_DROPOUT, "held_out": held_out, "validate_every": 2}
    tiny_training(tmp_path / "whole", **options)

    def work(rank: int) -> str:
        def at_step_2(row: dict[str, float]) -> None:
            if row["step"] == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        with Stop() as stop, pytest.raises(Stopped) as caught:
            tiny_training(tmp_path / "cut", stop=stop, on_step=at_step_2, **options)
        return str(caught.value)

    assert team_of(work) == ["stopped after step 2 of 6"] * 2
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-2"]
    assert not any("validation_loss" in row for row in metrics(tmp_path / "cut"))
    team_of(lambda _rank: tiny_training(tmp_path / "cut", **options)[0].steps)
    _close(tmp_path / "cut", tmp_path / "whole")


def test_whoever_leaves_between_two_copies_of_the_base_is_heard(tmp_path: Path) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("by hand")

    def stopping(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def work(rank: int) -> list[str]:
        said = []
        for who in (0, 1):
            for leaving in (failing, stopping):
                with pytest.MonkeyPatch.context() as patch, Stop() as stop:
                    if rank == who:
                        patch.setattr(sharding, "fully_shard", leaving)
                    with pytest.raises((Stopped, TrainingError, torch.OutOfMemoryError)) as caught:
                        tiny_training(tmp_path / f"{leaving.__name__}-{who}", distributed="fsdp", stop=stop)
                said.append(str(caught.value))
        return said

    first, second = team_of(work)
    assert first == ["by hand", "stopped", "process 1: OutOfMemoryError: by hand", "stopped"]
    assert second == ["OutOfMemoryError: by hand", "stopped", "by hand", "stopped"]


def test_a_lack_of_memory_while_gradients_are_summed_ends_all_and_is_said(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        def failing(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("by hand")

        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(torch.distributed, "all_reduce", failing)
            try:
                tiny_training(tmp_path / "oom")
            except UserError as failure:
                (tmp_path / f"said-{rank}").write_text(f"{failure.told} {failure}")
                raise

    assert ended(started(work)) == [1, 1]
    assert (tmp_path / "said-1").read_text().startswith("False out of memory in the optimiser's step 1")
    assert "another process of this training has ended" in (tmp_path / "said-0").read_text()


def _waiting(*, failing: bool) -> None:
    with Team.join().together() as team:
        if failing:
            raise ZeroDivisionError("by hand")
        team.gather("waiting")


def test_other_data_in_one_process_is_refused_and_a_failure_is_heard_wherever_the_others_are(tmp_path: Path) -> None:
    def work(rank: int) -> list[str]:
        said = []
        with pytest.raises(TrainingError) as caught:
            tiny_training(tmp_path / "data", count=24 - rank)
        said.append(str(caught.value))
        with pytest.raises((TrainingError, ZeroDivisionError)) as failed:
            _waiting(failing=rank == 1)
        said.append(str(failed.value))
        with Team.join().together() as team:  # the leader's end dismisses whoever waits
            if rank == 1:
                team.gather("waiting")
                said.append("never")
        return said

    first, second = team_of(work)
    assert first[0] == second[0]
    assert first[0].startswith("process 1 has other training data than the first")
    assert first[1:] == ["process 1: ZeroDivisionError: by hand"]
    assert second[1:] == ["by hand"]


def test_a_quantised_base_is_whole_on_each_and_is_not_sharded(tmp_path: Path) -> None:
    tiny_training(tmp_path / "one", recipe=NO_DROPOUT, model=quantised("bnb-nf4"))

    def work(_rank: int) -> str:
        tiny_training(tmp_path / "ddp", recipe=NO_DROPOUT, model=quantised("bnb-nf4"))
        with pytest.raises(ModelError) as caught:
            tiny_training(tmp_path / "fsdp", model=quantised("bnb-nf4"), distributed="fsdp")
        return str(caught.value)

    for said in team_of(work):
        assert "cannot shard a base that is quantised (bnb-nf4)" in said
    _close(tmp_path / "ddp", tmp_path / "one")
    assert not (tmp_path / "fsdp").exists()


def test_a_leader_ends_only_after_the_others_have_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dist.new_group

    def slow(*given: Any, **named: Any) -> Any:
        group = plain(*given, **named)
        if dist.get_rank() == 1:
            time.sleep(0.3)
            (tmp_path / "there").touch()
        return group

    def joined(_rank: int) -> bool:
        return Team.join().size == 2 and (tmp_path / "there").exists()

    monkeypatch.setattr(dist, "new_group", slow)
    assert team_of(joined) == [True, True]


def test_a_cohort_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def work(rank: int) -> list[str]:
        recipes = [Recipe("one", NO_DROPOUT), Recipe("two", NO_DROPOUT)]
        configs = [read_config(None, [f"name={name}"]) for name in ("one", "two")]
        folders = [tmp_path / "runs" / config.name for config in configs]
        said = []
        for refused in (
            lambda: together(recipes, tmp_path / f"cohort-{rank}"),
            lambda: execute_cohort(configs, folders, Watching()),
        ):
            with pytest.raises(UserError) as caught:
                refused()
            said.append(f"{caught.value.told} {caught.value.problem}")
        return said

    problem = "a cohort trains in one process, and this is one of 2"
    assert team_of(work) == [[f"False {problem}"] * 2, [f"True {problem}"] * 2]
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("cohort-*/*/*"))


def test_shares_of_a_batch_have_like_numbers_of_tokens() -> None:
    lengths = [9, 1, 1, 1, 5, 5, 4, 4]
    shares = balanced(lengths, 2, 4)
    assert sorted(index for share in shares for index in share) == list(range(8))
    assert [sum(lengths[index] for index in share) for share in shares] == [15, 15]
    assert balanced([3], 3, 1) == [[0], [], []]
