"""A set of examples, and how it is asked and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_adapters.config.schema import EvaluateSection
from llm_adapters.data.encoding import Template
from llm_adapters.data.example import Example
from llm_adapters.data.sources import load_numbered
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.evaluation.families import Free
from llm_adapters.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from llm_adapters.evaluation.rows import Row
from llm_adapters.evaluation.task import GROUPS, Task, expand, tasks


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
        _check_answers(examples, numbers, source)
        name = Path(source).name.split(".")[0]
        task = tasks()[source] if source in tasks() else Free.of(name, examples)
        if not rules.generates and not any(map(task.options, examples)):
            raise DataError(f"{source} has no options to choose among", mend="--protocol standard")
        return cls(task, examples, numbers, get_template(rules.template or template), rules)

    @classmethod
    def asked(cls, settings: EvaluateSection, seed: int, template: str) -> list[Suite]:
        """The sets that a run evaluates, each under its protocols.

        Args:
            settings: of the run.
            seed: of the run; the sample's, unless ``settings`` has one.
            template: of the run.

        Raises:
            DataError: as :meth:`of`; or two sets would be written to one file.
        """
        named = (settings.data,) if isinstance(settings.data, str) else settings.data
        sources = dict.fromkeys(s for name in named for s in (expand([name]) if name in GROUPS else [name]))
        protocols = ("standard", "paper") if settings.protocol == "both" else (settings.protocol,)
        seed = seed if settings.seed is None else settings.seed
        suites = [cls.of(source, settings.size, seed, template, each) for source in sources for each in protocols]
        check_files(suites)
        return suites

    def judge_again(self, rows: Sequence[Row]) -> None:
        """Read the completions of an interrupted evaluation anew: another release may have written and judged them."""
        examples = dict(zip(self.numbers, self.examples, strict=True))
        for row in rows:
            if self.protocol.generates and row["row"] in examples:
                status, answer = self.task.judge(row["completion"], examples[row["row"]], self.protocol)
                row.update(answer=answer, status=status)

    @classmethod
    def of_rows(cls, source: str, examples: Sequence[Example], template: str) -> Suite:
        """Given examples, judged as the benchmark ``source`` is, or as any file if it is none.

        Raises:
            DataError: the template is unknown, or an example has no gold answer.
        """
        _check_answers(examples, range(len(examples)), source)
        task = tasks()[source] if source in tasks() else Free.of("validation", examples)
        return cls(task, examples, range(len(examples)), get_template(template))

    @property
    def file(self) -> str:
        """Name of its prediction file."""
        standard = self.protocol.name == "standard"
        return f"{self.task.name}.jsonl" if standard else f"{self.task.name}.{self.protocol.name}.jsonl"


def check_files(suites: Sequence[Suite]) -> None:
    """Refuse sets whose rows would be written to one file.

    Raises:
        DataError: there are such.
    """
    files = [suite.file for suite in suites]
    if twice := sorted({name for name in files if files.count(name) > 1}):
        raise DataError(
            f"two sets would be written to one file: {', '.join(twice)}", mend="rename one of the data files"
        )


def _check_answers(examples: Sequence[Example], numbers: Sequence[int], source: str) -> None:
    """Refuse examples that cannot be scored.

    Raises:
        DataError: an example has no gold answer.
    """
    bare = [number for number, example in zip(numbers, examples, strict=True) if not example.answer.strip()]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {len(examples)} examples have no 'answer', or an empty one (first: row "
            f"{bare[0] + 1} of the file)",
            mend="give every row the right answer in the field 'answer'",
        )
