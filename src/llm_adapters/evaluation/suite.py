"""A set of examples, and how it is asked and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_adapters.data.encoding import Template
from llm_adapters.data.example import Example
from llm_adapters.data.sources import load_numbered
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.evaluation.families import Free
from llm_adapters.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from llm_adapters.evaluation.task import Task, tasks


@dataclass(frozen=True)
class Suite:
    """One set of examples, and how it is asked and judged.

    Attributes:
        task: the benchmark, or the user's own set.
        examples: each with a gold answer.
        numbers: of each example, its row in the whole file, from 0.
        template: how an example becomes a prompt.
        protocol: how a completion is read.
    """

    task: Task
    examples: Sequence[Example]
    numbers: Sequence[int]
    template: Template
    protocol: Protocol = PROTOCOLS["standard"]

    @classmethod
    def of(cls, source: str, size: int | None, seed: int, template: str, protocol: str = "standard") -> Suite:
        """A registered benchmark, or a user's own file or generator.

        Raises:
            DataError: the source, template or protocol is unknown, an example has no gold answer, or there are no
                options for the protocol ``likelihood``.
        """
        rules = get_protocol(protocol)
        numbered = load_numbered(source, split="test", size=size, seed=seed)
        numbers, examples = [number for number, _ in numbered], [example for _, example in numbered]
        _check_answers(examples, source)
        name = Path(source).name.split(".")[0]
        task = tasks()[source] if source in tasks() else Free.of(name, examples)
        if not rules.generates and not any(map(task.options, examples)):
            raise DataError(f"{source} has no options to choose among", mend="--protocol standard")
        return cls(task, examples, numbers, get_template(rules.template or template), rules)

    @classmethod
    def of_rows(cls, source: str, examples: Sequence[Example], template: str) -> Suite:
        """Given examples, judged as the benchmark ``source`` is, or as any file if it is none.

        Raises:
            DataError: the template is unknown, or an example has no gold answer.
        """
        _check_answers(examples, source)
        task = tasks()[source] if source in tasks() else Free.of("validation", examples)
        return cls(task, examples, range(len(examples)), get_template(template))

    @property
    def file(self) -> str:
        """Name of its prediction file."""
        standard = self.protocol.name == "standard"
        return f"{self.task.name}.jsonl" if standard else f"{self.task.name}.{self.protocol.name}.jsonl"


def _check_answers(examples: Sequence[Example], source: str) -> None:
    """Refuse examples that cannot be scored.

    Raises:
        DataError: an example has no gold answer.
    """
    bare = [i for i, example in enumerate(examples) if not example.answer.strip()]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {len(examples)} examples have no 'answer' (first: row {bare[0] + 1})",
            mend="give every row the field 'answer', or leave evaluate out",
        )
