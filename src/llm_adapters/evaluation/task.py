"""Benchmarks: what each is, how it is judged. One file each in ``evaluation/tasks``, found by themselves."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from llm_adapters.data.example import Example
from llm_adapters.errors import DataError
from llm_adapters.evaluation.judge import Judgement, decide
from llm_adapters.evaluation.options import Option, likeliest
from llm_adapters.evaluation.protocols import Protocol

Family = Literal["arithmetic", "letters", "options", "free"]
GROUPS = ("math", "math_clean", "commonsense", "paper")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A benchmark.

    Attributes:
        name: its name in configurations, on the command line and of its folder of data: its file's name.
        title: as papers write it.
        rows: of its test set.
        majority: accuracy of always giving the most frequent gold answer, in [0, 1].
        chance: accuracy of guessing among the options, in [0, 1]; 0 where there are none.
        leaked: whether the published training mixture (Math10K, through MAWPS) holds much of its test set.
        in_paper: whether it stands in Table 3 or 4 of Hu et al. 2023.
    """

    name: str
    title: str
    rows: int
    majority: float
    chance: float = 0.0
    leaked: bool = False
    in_paper: bool = True

    family: ClassVar[Family]
    max_new_tokens: ClassVar[int] = 256
    """The limit that the reference generates with."""

    @abstractmethod
    def judge(self, completion: str, example: Example, protocol: Protocol) -> Judgement:
        """Judge a generated completion against ``example.answer``, never against its ``output``."""

    def options(self, example: Example) -> tuple[Option, ...]:  # noqa: ARG002
        """What can be chosen in this row; empty for questions without options, or if they cannot be read."""
        return ()

    def judge_likelihoods(
        self, example: Example, log_likelihoods: Sequence[float], *, normalise: bool = True
    ) -> Judgement:
        """Judge the choice of the option with the highest log-likelihood; see :func:`options.likeliest`.

        Raises:
            DataError: the row has no options, or not as many as there are values.
        """
        options = self.options(example)
        if not options or len(options) != len(log_likelihoods):
            raise DataError(
                f"{self.name}: {len(log_likelihoods)} log-likelihoods for a row with {len(options)} options",
                mend="score by generation" if not options else "give one for each of Task.options(example)",
            )
        label = likeliest(options, log_likelihoods, normalise=normalise)
        return decide(label, correct=label == example.answer)

    def groups(self) -> tuple[str, ...]:
        """The groups it belongs to."""
        math = self.family in ("arithmetic", "letters")
        member = {
            "math": math,
            "math_clean": math and not self.leaked,
            "commonsense": self.family == "options",
            "paper": self.in_paper,
        }
        return tuple(group for group in GROUPS if member[group])


@cache
def tasks() -> Mapping[str, Task]:
    """Every benchmark by name, in alphabetical order."""
    package = importlib.import_module("llm_adapters.evaluation.tasks")
    found: dict[str, Task] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        task = importlib.import_module(f"{package.__name__}.{module_info.name}").TASK
        assert task.name == module_info.name, f"the file {module_info.name}.py holds the task '{task.name}'"
        found[task.name] = task
    return dict(sorted(found.items()))


def get_task(name: str) -> Task:
    """The benchmark of that name.

    Raises:
        DataError: there is no such benchmark.
    """
    known = tasks()
    if name not in known:
        raise DataError(f"there is no benchmark '{name}'", given=name, allowed=known)
    return known[name]


def expand(names: Iterable[str]) -> list[str]:
    """Names of benchmarks for names of benchmarks and groups, each once, in the order given.

    Raises:
        DataError: a name is neither; all such names at once.
    """
    known = tasks()
    names = list(names)
    unknown = [name for name in names if name not in known and name not in GROUPS]
    if unknown:
        listed = ", ".join(f"'{name}'" for name in unknown)
        raise DataError(f"neither a benchmark nor a group: {listed}", given=unknown[0], allowed=[*GROUPS, *known])
    members = [
        [name] if name in known else [task.name for task in known.values() if name in task.groups()] for name in names
    ]
    return list(dict.fromkeys(name for group in members for name in group))
