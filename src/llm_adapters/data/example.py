"""One row of a data set, in the schema of the reference repository (Hu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """A question, its worked solution and its gold answer.

    Attributes:
        instruction: the question or task.
        input: further context; empty for most benchmarks.
        output: the text a model is trained to produce. Never score against it: in several benchmark
            files it is a model-written rationale that disagrees with ``answer``.
        answer: the gold answer alone, as text ("12", "C", "true").
        meta: further keys of the row, such as the data set it came from; not part of its identity.
    """

    instruction: str
    input: str
    output: str
    answer: str
    meta: Mapping[str, object] = field(default_factory=dict, compare=False)
