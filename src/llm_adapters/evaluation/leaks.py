"""Which rows of test sets the training data of the evaluated adapters give away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_adapters.data.contamination import contamination
from llm_adapters.data.digest import data_digest
from llm_adapters.data.example import Example
from llm_adapters.data.sources import load_source
from llm_adapters.errors import DataError
from llm_adapters.evaluation.suite import Suite


@dataclass(frozen=True)
class TrainingData:
    """What a run was trained on, as its configuration names it.

    Attributes:
        source, size, seed: as in ``data``.
        digest: of the examples, if the run tells.
        held_out: how many of them were not trained on.
    """

    source: str
    size: int | None
    seed: int
    digest: str | None = None
    held_out: int = 0

    def load(self) -> list[Example] | None:
        """Its examples; None if they cannot be had here any more, or are others now."""
        try:
            examples = load_source(self.source, split="train", size=self.size, seed=self.seed)
        except (DataError, OSError):
            return None
        return examples if self.digest in (None, data_digest(examples)) else None


class Leaks:
    """By set, the rows that the training data of an adapter give away.

    For the bare base, which was trained on none of them, the rows count that any of the adapters' data give away:
    so it stands beside them on the same rows.
    """

    def __init__(self, by_adapter: Mapping[str, Sequence[Example] | None], suites: Sequence[Suite]) -> None:
        known: list[tuple[Sequence[Example], dict[str, set[int]]]] = []
        self.found: dict[str, dict[str, set[int]] | None] = {}
        for name, examples in by_adapter.items():
            if examples is not None and not any(examples == seen for seen, _ in known):
                known.append((examples, given_away(examples, suites)))
            self.found[name] = next((rows for seen, rows in known if seen == examples), None)

    def __call__(self, adapter: str | None, suite: Suite) -> set[int] | None:
        """Row numbers of ``suite``; None if the training data are not known."""
        if adapter is not None:
            own = self.found.get(adapter)
            return None if own is None else own[suite.file]
        each = [own[suite.file] for own in self.found.values() if own is not None]
        return set.union(*each) if each else None


def given_away(training: Sequence[Example], suites: Sequence[Suite]) -> dict[str, set[int]]:
    """By the file name of each suite, the numbers of its rows that ``training`` gives away in any way."""
    asked = {(suite.task.name, *suite.numbers): suite for suite in suites}  # two protocols ask the same questions
    report = contamination(training, {str(i): suite.examples for i, suite in enumerate(asked.values())})
    rows = {
        key: {suite.numbers[row] for row in report.sets[str(i)].test_rows()}
        for i, (key, suite) in enumerate(asked.items())
    }
    return {suite.file: rows[suite.task.name, *suite.numbers] for suite in suites}
