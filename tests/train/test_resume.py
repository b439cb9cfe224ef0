"""Killed anywhere, a training goes on and ends with the bits of one that was left alone."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llm_adapters as la
from llm_adapters.errors import AdapterError, OutputError
from tiny import small, tiny_model
from tiny_training import checkpoints, metrics, same, tiny_training

LONG: dict[str, Any] = {"epochs": 12, "checkpoint_every": 4, "validate_every": 6, "held_out": 8}
STEPS, KILLS = 36, 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, tiny_training(folder, **LONG)[1]


def _forked(work: Callable[[], object]) -> int:
    """Run in a child that has everything imported already; gives its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 – the child must not go on with the parent's tests
            os._exit(1)
        os._exit(0)
    return child


def _ended(child: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killed_at_call(folder: Path, count: int) -> int:
    """Train until the disk has been asked ``count`` times to keep or name something, and be killed right there."""

    def work() -> None:
        left = count

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counting

        for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        tiny_training(folder, **LONG)

    return _ended(_forked(work))


def _killed_when(folder: Path, ready: Callable[[], bool]) -> int:
    """Train, and be killed from outside as soon as ``ready``."""
    child = _forked(lambda: tiny_training(folder, **LONG))
    while not ready():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return _ended(child)


def _rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_training_killed_twenty_times_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    rng, kills, within_checkpoints = random.Random(0), 0, 0
    while kills < KILLS:
        # Early steps only get done again: aim at where it stands now, plus a little.
        if kills % 2:
            ended = _killed_at_call(tmp_path, rng.randrange(1, 40))
        else:
            at, before = _rows(tmp_path) + rng.randrange(0, 3), kills // 4 % 2
            ended = _killed_when(
                tmp_path,
                (lambda: any((tmp_path / "checkpoints").glob(".step-*-*"))) if before else (lambda: _rows(tmp_path) > at),
            )
        assert ended in (-signal.SIGKILL, 0), ended
        kills += ended == -signal.SIGKILL
        within_checkpoints += any((tmp_path / "checkpoints").glob(".step-*"))
        if ended == 0:
            break
    print(kills, within_checkpoints)
