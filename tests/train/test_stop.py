"""SIGTERM and Ctrl-C: the step is finished and kept."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from llm_adapters.errors import Stopped
from llm_adapters.train import Stop
from llm_adapters.train.loss import summed_loss
from llm_adapters.train.validation import Validation
from tiny_training import checkpoints, metrics, same, tiny_training


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Signals as in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_writes_a_checkpoint(tmp_path: Path, number: int) -> None:
    def at_step_2(row: dict[str, float]) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    _, expected = tiny_training(tmp_path / "whole")
    with Stop() as stop, pytest.raises(Stopped, match="after step 2 of 6"):
        tiny_training(tmp_path / "cut", stop=stop, on_step=at_step_2)
    assert signal.getsignal(number) is before
    result, adapter = tiny_training(tmp_path / "cut")
    assert result.resumed == [2]
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("last", [2, 6])
def test_a_signal_does_not_wait_for_a_validation_which_comes_when_the_training_goes_on(
    tmp_path: Path, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[int] = []
    measure = Validation.measure

    def watched(self: Validation, *given: Any, **named: Any) -> Any:
        validated.append(1)
        return measure(self, *given, **named)

    monkeypatch.setattr(Validation, "measure", watched)
    options = {"held_out": 8, "validate_every": 2}
    whole, expected = tiny_training(tmp_path / "whole", **options)
    validated.clear()

    def at_the_last(row: dict[str, float]) -> None:
        if row["step"] == last:
            os.kill(os.getpid(), signal.SIGTERM)

    with Stop() as stop, pytest.raises(Stopped, match=f"after step {last} of 6"):
        tiny_training(tmp_path / "cut", stop=stop, on_step=at_the_last, **options)
    assert len(validated) == last // 2 - 1
    assert metrics(tmp_path / "cut")[-1]["step"] == last
    assert "loss" in metrics(tmp_path / "cut")[-1]

    def killed(_row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    if last < 6:  # what was validated after the checkpoint is validated again, and written once
        with pytest.raises(KeyboardInterrupt):
            tiny_training(tmp_path / "cut", on_step=killed, **options)
        assert "validation_loss" in metrics(tmp_path / "cut")[last]
    result, adapter = tiny_training(tmp_path / "cut", **options)
    assert (result.best_step, result.best_loss) == (whole.best_step, whole.best_loss)
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_signal_breaks_a_validation_off_which_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"held_out": 8, "validate_every": 2, "micro_batch": 2, "keep_checkpoints": 1}
    whole, expected = tiny_training(tmp_path / "whole", **options)
    losses = 0

    def interrupted(*given: Any) -> Tensor:
        nonlocal losses
        losses += 1
        os.kill(os.getpid(), signal.SIGTERM)
        return summed_loss(*given)

    for _ in range(2):  # again, before anything was gained
        monkeypatch.setattr("llm_adapters.train.validation.summed_loss", interrupted)
        with Stop() as stop, pytest.raises(Stopped, match="after step 2 of 6"):
            tiny_training(tmp_path / "cut", stop=stop, **options)
    monkeypatch.undo()
    assert losses == 2  # of four micro-batches one in each session
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [1, 2]
    result, adapter = tiny_training(tmp_path / "cut", **options)
    assert (result.best_step, result.best_loss) == (whole.best_step, whole.best_loss)
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"))


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Stop() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_where_nothing_is_half_done_the_first_one_stops_at_once() -> None:
    with Stop(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.asked
