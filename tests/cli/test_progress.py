"""What a log file says of a long training."""

from functools import partial

import pytest
from rich.console import Console

from llm_adapters.cli import progress
from llm_adapters.cli.progress import Progress, duration
from llm_adapters.train import RecentRate


def test_the_time_left_is_by_the_pace_of_this_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress()
    shown.begin("training", 1000)
    shown.advance(900)  # done by an earlier session
    for _ in range(10):
        clock[0] += 4.0
        shown.advance(1, "loss 1.000")
    assert "908/1000 after 32 s, 6 min 8 s left  loss 1.000" in capsys.readouterr().err


def test_tokens_a_second_are_those_of_the_last_steps() -> None:
    rate = RecentRate(steps=2)
    rows = [(100.0, 1000), (101.0, 2000), (102.0, 3000), (103.0, 7000)]
    found = [rate.after({"seconds": s, "tokens": t, "tokens_per_second": 10.0}) for s, t in rows]
    assert found == [10.0, 1000.0, 1000.0, 2500.0]


def test_durations() -> None:
    assert [duration(s) for s in (5.21, 65, 3720)] == ["5.2 s", "1 min 5 s", "1 h 2 min"]


def test_a_bar_tells_the_time_left_also_of_steps_that_take_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "Console", partial(Console, force_terminal=True, width=120))
    with Progress() as shown:
        shown.begin("training", 10)
        for _ in range(3):
            clock[0] += 120.0
            shown.advance(1, "loss 1.000")
        assert shown.bar is not None
        shown.bar.refresh()
        assert "14 min 0 s left  loss 1.000" in capsys.readouterr().err
