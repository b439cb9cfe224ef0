"""Which questions of test sets a training set already holds.

Three kinds, each by itself; a row may be of several:

``exact``           the same question once normalised: lower case, letters and digits only, answer choices cut off
``numbers-masked``  the same question once every number is masked as well
``8-gram``          more than half of the test question's different word 8-grams occur in one training question
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llm_adapters.data.example import Example
from llm_adapters.data.ngrams import NgramIndex
from llm_adapters.data.questions import masked, normalised, stem, words

Kind = Literal["exact", "numbers-masked", "8-gram"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Hit:
    """A test row, and all training rows that give it away in one way; rows count from 0."""

    test_row: int
    kind: Kind
    train_rows: tuple[int, ...]


@dataclass(frozen=True)
class Contaminated:
    """What was found in one test set of ``rows`` rows."""

    rows: int
    hits: tuple[Hit, ...]

    def test_rows(self, *kinds: Kind) -> set[int]:
        """The test rows with a hit of one of these kinds, or of any."""
        return {hit.test_row for hit in self.hits if not kinds or hit.kind in kinds}

    def train_rows(self, *kinds: Kind) -> set[int]:
        """The training rows that give away a test row in one of these ways, or in any."""
        return {row for hit in self.hits if not kinds or hit.kind in kinds for row in hit.train_rows}

    def clean(self) -> set[int]:
        """The test rows without any hit."""
        return set(range(self.rows)) - self.test_rows()

    @property
    def share(self) -> float:
        """The share of test rows with a hit of any kind."""
        return len(self.test_rows()) / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Report:
    """What was found in every test set, by its name."""

    train_rows: int
    sets: Mapping[str, Contaminated]


def contamination(train: Sequence[Example], tests: Mapping[str, Sequence[Example]]) -> Report:
    """Look every question of every test set up among the questions of a training set.

    Only questions are compared, never outputs: two problems may well have the same solution.
    """
    stems = [stem(example) for example in train]
    exact, masks = _by_key(map(normalised, stems)), _by_key(map(masked, stems))
    grams = NgramIndex([words(text) for text in stems])

    def look_up(test: Sequence[Example]) -> Contaminated:
        asked = [stem(example) for example in test]
        hits = [Hit(row, "exact", exact[key]) for row, text in enumerate(asked) if (key := normalised(text)) in exact]
        hits += [
            Hit(row, "numbers-masked", masks[key]) for row, text in enumerate(asked) if (key := masked(text)) in masks
        ]
        hits += [Hit(row, "8-gram", rows) for row, rows in grams.overlaps([words(text) for text in asked])]
        return Contaminated(len(test), tuple(sorted(hits, key=lambda hit: (hit.test_row, KINDS.index(hit.kind)))))

    return Report(len(train), {name: look_up(test) for name, test in tests.items()})


def clean_rows(train: Sequence[Example], test: Sequence[Example]) -> set[int]:
    """The rows of a test set, counted from 0, that a training set does not give away in any of the three ways."""
    return contamination(train, {"test": test}).sets["test"].clean()


def _by_key(keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The rows of each key; an empty text is not one."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key:
            rows[key].append(row)
    return {key: tuple(found) for key, found in rows.items()}
