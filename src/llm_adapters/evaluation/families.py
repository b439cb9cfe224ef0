"""The families of benchmarks: arithmetic, lettered choices, labelled options, and a user's own questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

from llm_adapters.data.example import Example
from llm_adapters.evaluation.judge import Judgement
from llm_adapters.evaluation.options import Option, lettered, numbered
from llm_adapters.evaluation.protocols import Protocol
from llm_adapters.evaluation.task import Family, Task

TRUTH = ("true", "false")
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")


@final
@dataclass(frozen=True, kw_only=True)
class Arithmetic(Task):
    """Word problems with a number for an answer."""

    family: ClassVar[Family] = "arithmetic"

    def judge(self, completion: str, example: Example, protocol: Protocol) -> Judgement:
        return protocol.number(completion, example.answer)


@final
@dataclass(frozen=True, kw_only=True)
class Letters(Task):
    """Word problems with five lettered choices."""

    family: ClassVar[Family] = "letters"

    def options(self, example: Example) -> tuple[Option, ...]:
        return lettered(example.instruction)

    def judge(self, completion: str, example: Example, protocol: Protocol) -> Judgement:
        return protocol.letter(completion, example.answer, self.options(example))


@final
@dataclass(frozen=True, kw_only=True)
class Options(Task):
    """Commonsense questions; ``labels`` are those of its rows, which may have fewer, in the reference's order."""

    family: ClassVar[Family] = "options"
    max_new_tokens: ClassVar[int] = 32
    labels: tuple[str, ...]

    def options(self, example: Example) -> tuple[Option, ...]:
        return numbered(example.instruction)

    def judge(self, completion: str, example: Example, protocol: Protocol) -> Judgement:
        return protocol.label(completion, example.answer, self.options(example), self.labels)


@final
@dataclass(frozen=True, kw_only=True)
class Free(Task):
    """A user's own questions: numbers are compared as numbers, anything else as text."""

    family: ClassVar[Family] = "free"

    @classmethod
    def of(cls, name: str, examples: Sequence[Example]) -> Self:
        """The task of a user's data set."""
        _, most = Counter(example.answer.strip() for example in examples).most_common(1)[0]
        return cls(name=name, title=name, rows=len(examples), majority=most / len(examples), in_paper=False)

    def judge(self, completion: str, example: Example, protocol: Protocol) -> Judgement:
        return protocol.free(completion, example.answer)
