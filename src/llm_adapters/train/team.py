"""The processes that train one adapter together: who they are, and what they tell each other.

Words go from all to all in one kind of meeting, :meth:`Team.gather`, so that a process that fails anywhere can say so
where the others meet next, and none waits for it. Numbers (gradients, parameters) go through NCCL on GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llm_adapters.errors import Stopped, TrainingError, UserError

T = TypeVar("T")
_LEADER = 0
_ENDED = "another process of this training has ended; what it said is the reason"
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_PATIENCE = timedelta(days=30)  # the leader may evaluate for long; a process that dies is noticed at once all the same


@dataclass(frozen=True)
class _Last:
    """The last word of a process: that it failed, was stopped, or (of the leader) needs the others no longer."""

    kind: type[BaseException]
    text: str


class Dismissed(BaseException):
    """The leader is done, and this process with it."""


class Team:
    """The processes that ``torchrun`` or ``accelerate launch`` started, or this one alone.

    Attributes:
        rank, size: this process, from 0, of how many; the first leads: it alone writes and reports.
    """

    def __init__(self, rank: int = _LEADER, size: int = 1, words: Any = None) -> None:
        """``words`` is the process group that :meth:`gather` meets in."""
        self.rank, self.size, self._words = rank, size, words
        self._depth = 0
        self._over = self._told = False  # no more meetings; the leader knows why

    @staticmethod
    def join() -> Team:
        """The team of this process; the first call meets the others.

        Raises:
            TrainingError: this machine has fewer GPUs than processes.
        """
        return _join()

    @staticmethod
    def alone(what: str) -> Team:
        """The team of this process, for what one process does.

        Raises:
            TrainingError: it is one of several.
        """
        team = Team.join()
        if team.size > 1:
            refused = TrainingError(
                f"{what} trains in one process, and this is one of {team.size}",
                mend="without the launcher (torchrun, accelerate launch); several processes train one adapter together",
            )
            refused.told = not team.leads
            raise refused
        return team

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == _LEADER

    @contextmanager
    def together(self) -> Iterator[Team]:
        """All end together: what fails inside on one process ends it on all, with one message, the leader's.

        Whoever comes to the end waits for the leader, whose end dismisses those that are anywhere inside.
        """
        self._depth += 1
        try:
            yield self
            if self._depth == 1:
                self.gather(_Last(Dismissed, "") if self.leads else None)
        except Dismissed:
            if self._depth > 1:
                raise
        except BaseException as failure:
            if self._depth == 1:
                self._tell(failure)
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._over = self._told = False

    def _tell(self, failure: BaseException) -> None:
        """Let the others hear of a failure where they meet next, unless they have."""
        if self.size > 1 and not self._over:
            kind = next((k for k in (Stopped, UserError) if isinstance(failure, k)), Exception)
            text = f"{type(failure).__name__}: {failure}" if kind is Exception else str(failure)
            try:
                with _signals_kept():  # this is an end already
                    self._meet(_Last(kind, text))
                self._told = True
            except RuntimeError:
                pass  # they are gone
        if isinstance(failure, UserError):
            failure.told = self._told and not self.leads

    @contextmanager
    def entangled(self) -> Iterator[None]:
        """Inside, processes wait for each other's numbers: one that fails here cannot tell, it can only end."""
        try:
            yield
        except BaseException as failure:
            self._over = True
            if self.size > 1 and isinstance(failure, RuntimeError) and any(sign in str(failure) for sign in _LOST):
                self._told = True
                raise TrainingError(_ENDED) from failure
            raise

    def _meet(self, value: object) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._words)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank.

        Raises:
            TrainingError, Stopped: another process has failed, or was stopped.
            Dismissed: the leader is done.
        """
        if self.size == 1:
            return [value]
        try:
            with _signals_kept() as kept:
                values = self._meet(value)
        except RuntimeError as failure:
            self._over = self._told = True
            raise TrainingError(_ENDED) from failure
        for rank, last in enumerate(values):
            if isinstance(last, _Last) and rank != self.rank:
                self._over = self._told = True
                if last.kind in (Dismissed, Stopped):
                    raise last.kind(last.text)
                raise TrainingError(last.text if rank == _LEADER else f"process {rank}: {last.text}")
        _deliver(kept)
        return values

    def any(self, mine: bool) -> bool:
        """Whether it is so on any process."""
        return any(self.gather(mine))

    def from_leader(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on the leader, where alone it is done."""
        return self.gather(work() if self.leads else None)[_LEADER]  # type: ignore[return-value]

    def agree(self, what: dict[str, str]) -> None:
        """Make sure that all processes have the same digests, under readable names.

        Raises:
            TrainingError: they differ.
        """
        first, *others = self.gather(what)
        for rank, other in enumerate(others, start=1):
            differing = [name for name in first if other[name] != first[name]]
            if differing:
                raise TrainingError(
                    f"process {rank} has other {' and '.join(differing)} than the first",
                    mend="let all machines see the same files, and set model.dtype where their GPUs differ",
                )

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, wherever they are, with those of the leader."""
        if self.size == 1:
            return
        self.gather(None)  # whoever failed or was stopped on the way says so here
        device = self.device()
        with self.entangled(), torch.no_grad(), _signals_kept() as kept:
            for tensor in tensors:
                sent = tensor.detach().to(device).contiguous()
                dist.broadcast(sent, _LEADER)
                tensor.copy_(sent)
        _deliver(kept)

    @staticmethod
    def device() -> torch.device:
        """Where tensors must be to go from process to process."""
        cuda = "nccl" in dist.get_backend()
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of all processes, in one piece; a parameter without any on all of them stays so."""
        if self.size == 1:
            return
        with self.entangled():
            there = [[float(p.grad is not None)] for p in parameters]
            dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
            device = self.device()
            parts = [torch.zeros(p.numel(), dtype=dtype, device=device) if p.grad is None
                     else p.grad.flatten().to(device, dtype) for p in parameters]  # fmt: skip
            flat = torch.cat([*parts, torch.tensor(there, dtype=dtype, device=device).flatten()])
            del parts
            dist.all_reduce(flat)
            *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
            for parameter, total, count in zip(parameters, sums, counts.tolist(), strict=True):
                parameter.grad = total.view_as(parameter).to(parameter) if count else None


@contextmanager
def _signals_kept() -> Iterator[list[int]]:
    """Signals that come inside are kept, by number: Python would handle them between two collectives of one exchange.

    Whoever left there would leave the others with half a message, and whoever was killed there (SIGTERM, where nobody
    handles it) with none.
    """
    kept: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    heard = [
        n for n in (signal.SIGTERM, signal.SIGINT) if in_main and signal.getsignal(n) not in (signal.SIG_IGN, None)
    ]
    before = {number: signal.signal(number, lambda number, _frame: kept.append(number)) for number in heard}
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deliver(kept: Sequence[int]) -> None:
    for number in kept:
        signal.raise_signal(number)


def leave() -> None:
    """Part from the others after an end that all have reached."""
    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _join() -> Team:
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    if not dist.is_available() or not (dist.is_initialized() or (launched and int(os.environ["WORLD_SIZE"]) > 1)):
        return Team()
    cuda = torch.cuda.is_available()
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
                mend="--nproc-per-node GPUS",
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    words = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        dist.barrier(words)  # the leader keeps what they meet through: if it ended now, another could not join
    except RuntimeError as failure:
        raise TrainingError(_ENDED) from failure
    return Team(dist.get_rank(), dist.get_world_size(), words)
