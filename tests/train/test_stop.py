"""SIGTERM and Ctrl-C: the step is finished and kept."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_adapters.errors import Stopped
from llm_adapters.train import Stop
from tiny_training import metrics, same, tiny_training


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
