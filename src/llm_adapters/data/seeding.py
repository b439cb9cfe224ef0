"""Random choices that are the same in every process and on every Python version.

Of the standard generator only ``random()`` after an integer seed is promised to stay the same across
Python versions, so every choice here is made from it; ``hash()``, which differs by process, is not used.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def stable_random(*parts: int | str) -> random.Random:
    """A generator seeded by all ``parts``; unlike ``Random(seed)`` it tells seed -1 from seed 1."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of ``items``, all equally likely."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """``items`` in a random order."""
    return [item for _, _, item in sorted((rng.random(), place, item) for place, item in enumerate(items))]
