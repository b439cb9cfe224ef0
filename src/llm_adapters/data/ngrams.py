"""Which training rows hold most of a test row's word n-grams: an inverted index over 64-bit hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

N = 8
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_MOST_PAIRS = 4_000_000  # expanded at once: 100 MB at most, however much the rows repeat each other


class NgramIndex:
    """The n-grams of training rows, to be asked which rows hold most of a test row's."""

    def __init__(self, rows: Sequence[Sequence[str]], n: int = N) -> None:
        self.n, self.rows = n, len(rows)
        self.vocabulary: dict[str, int] = {}
        hashes, row = self._grams(rows)
        order = np.lexsort((row, hashes))
        self.hashes, self.row = hashes[order], row[order]

    def overlaps(self, tests: Sequence[Sequence[str]]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Test rows more than half of whose different n-grams occur in one training row, with those rows.

        A test row of fewer than n words has no n-gram and is never given.
        """
        hashes, row = self._grams(tests)
        first = np.searchsorted(self.hashes, hashes, side="left")
        found = np.searchsorted(self.hashes, hashes, side="right") - first
        total = np.bincount(row, minlength=len(tests))
        cumulated = np.concatenate([[0], np.cumsum(np.bincount(row, weights=found, minlength=len(tests)))])
        start = 0
        while start < len(tests):
            stop = max(start + 1, int(np.searchsorted(cumulated, cumulated[start] + _MOST_PAIRS, side="right")) - 1)
            inside = (row >= start) & (row < stop)
            yield from self._counted(row[inside], first[inside], found[inside], total)
            start = stop

    def _counted(self, row: Ints, first: Ints, found: Ints, total: Ints) -> Iterator[tuple[int, tuple[int, ...]]]:
        """One pair of test row and training row for each n-gram that both have, counted and held to the half."""
        offset = np.arange(found.sum()) - np.repeat(np.cumsum(found) - found, found)
        training = self.row[np.repeat(first, found) + offset]
        pair, shared = np.unique(np.repeat(row, found) * self.rows + training, return_counts=True)
        test, training = np.divmod(pair, self.rows)
        most = 2 * shared > total[test]
        test, training = test[most], training[most]
        bounds = np.flatnonzero(np.diff(test)) + 1
        for tests, trainings in zip(np.split(test, bounds), np.split(training, bounds), strict=True):
            if len(tests):
                yield int(tests[0]), tuple(trainings.tolist())

    def _grams(self, rows: Sequence[Sequence[str]]) -> tuple[Hashes, Ints]:
        """Hash and row of every different n-gram of every row."""
        known = self.vocabulary
        ids = [known.setdefault(word, len(known)) for row in rows for word in row]
        values = _mixed(np.array(ids, dtype=np.uint64))
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        row = np.repeat(np.arange(len(rows)), lengths)
        place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        begins = np.flatnonzero(place + self.n <= lengths[row])
        hashes = np.zeros(len(begins), dtype=np.uint64)
        for offset in range(self.n):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[begins + offset]
        row = row[begins]
        order = np.lexsort((hashes, row))
        hashes, row = hashes[order], row[order]
        new = np.ones(len(row), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (row[1:] != row[:-1])
        return hashes[new], row[new]


def _mixed(ids: Hashes) -> Hashes:
    """Numbers spread over 64 bits (the finaliser of SplitMix64), so that sums of them do not collide."""
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
