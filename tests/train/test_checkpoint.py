"""Checkpoints that are damaged, too many, or do not fit on the disk."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_adapters.errors import OutputError, TrainingError
from llm_adapters.train.checkpoint import Checkpoints, damage
from tiny import tiny_model
from tiny_training import checkpoints, examples, metrics, same, tiny_training


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


FILES = ("adapter.json", "adapter.safetensors", "checkpoint.json", "optimizer.safetensors", "position.json",
         "random.safetensors")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [_truncate, _flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    notes: list[str] = []
    kept = Checkpoints(tmp_path, 2, notes.append)
    contents = {file: b"something\n" for file in FILES if file != "checkpoint.json"}
    kept.save(4, contents, best=None)
    kept.save(8, contents, best=None)
    assert damage(tmp_path / "step-8") is None
    harm(tmp_path / "step-8" / name)
    assert kept.newest() == tmp_path / "step-4"
    [note] = notes
    assert "step-8" in note
    assert name in note


def test_training_goes_on_from_before_the_damage_with_the_same_result(tmp_path: Path) -> None:
    _, expected = tiny_training(tmp_path / "whole")
    tiny_training(tmp_path / "cut", checkpoint_every=2)
    assert {path.name for path in (tmp_path / "cut/checkpoints").iterdir()} == {"step-4", "step-6"}
    _flip(tmp_path / "cut/checkpoints/step-6/optimizer.safetensors")
    notes: list[str] = []
    result, adapter = tiny_training(tmp_path / "cut", checkpoint_every=2, notes=notes)
    assert result.resumed == [4]
    assert len([note for note in notes if "'optimizer.safetensors' is truncated or was changed" in note]) == 1
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_the_last_ones_stay_and_the_best_that_they_name(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, 2, print)
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        kept.save(step, {"a": b"bb"}, best=best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-5"]
    kept.save(6, {"a": b"bb"}, best=4)
    kept.save(7, {"a": b"bb"}, best=7)
    # step-4 is no best any more, but going on from step-6 would need it.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-6", "step-7"]
    _flip(tmp_path / "step-7" / "a")
    assert Checkpoints(tmp_path, 2, print).newest() == tmp_path / "step-6"
    kept.save(7, {"a": b"bb"}, best=4)
    _flip(tmp_path / "step-4" / "a")
    notes: list[str] = []
    assert Checkpoints(tmp_path, 2, notes.append).newest() == tmp_path / "step-7"
    assert notes == [
        "the best adapter so far lies in step-4, where 'a' is truncated or was changed: "
        "it is lost, and the best is looked for anew"
    ]
    _flip(tmp_path / "step-7" / "a")
    assert Checkpoints(tmp_path, 2, print).newest() == tmp_path / "step-6"
    _flip(tmp_path / "step-6" / "a")
    assert Checkpoints(tmp_path, 2, print).newest() is None


def test_what_cannot_be_read_just_now_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, 2, print)
    for step in (1, 2):
        kept.save(step, {"a": b"x"}, best=None)
    plain = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.parent.name == "step-2":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(OutputError, match="step-2' cannot be read: Input/output error") as caught:
            Checkpoints(tmp_path, 2, print).newest()
    assert "nothing was removed" in str(caught.value)
    assert Checkpoints(tmp_path, 2, print).newest() == tmp_path / "step-2"


def test_one_that_is_written_anew_is_there_all_the_time(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, 1, print)
    kept.save(3, {"a": b"x"}, best=None)
    kept.save(3, {"a": b"y"}, best=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    assert (tmp_path / "step-3" / "a").read_bytes() == b"y"
    os.replace(tmp_path / "step-3", tmp_path / ".step-3-before")  # killed between the two names
    (tmp_path / ".step-3-17").mkdir()
    assert Checkpoints(tmp_path, 1, print).newest() == tmp_path / "step-3"
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_with_the_best_of_a_training_damaged_its_end_is_validated_again(tmp_path: Path) -> None:
    options = {"epochs": 20, "count": 8, "held_out": 8, "validate_every": 2, "checkpoint_every": 10, "seed": 7}
    whole, _ = tiny_training(tmp_path, **options)
    assert whole.best_step is not None
    assert whole.best_step < whole.steps == 20
    before = metrics(tmp_path)
    _flip(tmp_path / f"checkpoints/step-{whole.best_step}/optimizer.safetensors")
    result, _ = tiny_training(tmp_path, **options)
    assert result.resumed == [20]
    assert result.best_step == 20
    assert result.best_loss == before[-1]["validation_loss"]
    assert metrics(tmp_path) == before


def test_with_nothing_but_the_best_damaged_the_training_goes_on_and_looks_for_another(tmp_path: Path) -> None:
    options = {"epochs": 20, "count": 8, "held_out": 8, "validate_every": 2, "checkpoint_every": 1, "seed": 7}
    whole, expected = tiny_training(tmp_path / "whole", **options)
    best = whole.best_step
    assert best is not None
    assert best + 5 < whole.steps

    def cut(row: dict[str, float]) -> None:
        if row["step"] == best + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", on_step=cut, **options)
    _flip(tmp_path / f"cut/checkpoints/step-{best}/optimizer.safetensors")
    notes: list[str] = []
    result, adapter = tiny_training(tmp_path / "cut", notes=notes, **options)
    assert result.resumed == [best + 4]
    assert any("the best is looked for anew" in note for note in notes)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert result.best_step is not None
    assert result.best_step >= best + 4
    assert not same(adapter, expected)


def test_a_checkpoint_of_every_so_many_minutes_comes_without_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("llm_adapters.train.loop.time.perf_counter", lambda: now)

    def minutes_pass(_row: object) -> None:
        nonlocal now
        now += 240

    tiny_training(tmp_path, on_step=minutes_pass, keep_checkpoints=9)
    assert sorted(checkpoints(tmp_path)) == ["step-3", "step-6"]
    tiny_training(tmp_path / "never", on_step=minutes_pass, checkpoint_minutes=None)
    assert not (tmp_path / "never" / "checkpoints").exists()


@pytest.mark.parametrize("full", ["optimizer.safetensors", "checkpoint.json", "metrics.jsonl"])
def test_a_full_disk_keeps_the_last_good_checkpoint_and_training_goes_on_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    _, expected = tiny_training(tmp_path / "whole", checkpoint_every=2)
    plain, seen = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal seen
        name = os.readlink(f"/proc/self/fd/{handle}")
        seen += name.endswith(full)
        if name.endswith(full) and seen == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            tiny_training(tmp_path / "full", checkpoint_every=2)
    assert "free some space" in str(caught.value)
    assert sorted(checkpoints(tmp_path / "full")) == ["step-2"]
    if full != "metrics.jsonl":
        assert "step-2" in str(caught.value)
    result, adapter = tiny_training(tmp_path / "full", checkpoint_every=2)
    assert result.resumed == [2]
    assert same(adapter, expected)


def test_a_row_cut_off_by_a_full_disk_is_written_again(tmp_path: Path) -> None:
    tiny_training(tmp_path / "whole", checkpoint_every=2)
    size = (tmp_path / "whole/metrics.jsonl").stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def tighten(row: dict[str, float]) -> None:
        if row["step"] == 3:  # Python ignores SIGXFSZ: the write that crosses the limit takes a part, the next fails
            written = (tmp_path / "full/metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (written + size // 12, limit[1]))

    try:
        with pytest.raises(OutputError, match=r"metrics\.jsonl' cannot be written: File too large"):
            tiny_training(tmp_path / "full", checkpoint_every=2, on_step=tighten)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "full/metrics.jsonl").read_bytes().endswith(b"\n")
    tiny_training(tmp_path / "full", checkpoint_every=2)
    assert metrics(tmp_path / "full") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("every", [1, None])
def test_a_loss_that_is_no_number_names_its_rows_and_the_last_good_checkpoint(
    every: int | None, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    assert [i + 1 for i, example in enumerate(examples(24)) if 8 in example.input_ids] == [4]
    model.get_input_embeddings().weight.data[8] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        tiny_training(tmp_path, model=model, checkpoint_every=every, micro_batch=1)
    assert "in step 2, on the rows 4 of the training data" in str(caught.value)
    last = tmp_path / "checkpoints" / "step-1"
    assert f"the last good checkpoint is '{last}'" in str(caught.value)
    assert damage(last) is None
    assert len(metrics(tmp_path)) == 1


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path: Path) -> None:
    model = tiny_model("llama")

    def spoil(_module: object, gradients: tuple[object, ...], _output: object) -> object:
        return tuple(gradient * float("inf") for gradient in gradients)

    model.model.layers[1].register_full_backward_hook(spoil)
    with pytest.raises(TrainingError, match="the gradient's norm is"):
        tiny_training(tmp_path, model=model)
    assert json.loads((tmp_path / "metrics.jsonl").read_text() or "null") is None
