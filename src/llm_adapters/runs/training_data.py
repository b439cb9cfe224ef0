"""The data of a run's training: what is trained on, and what it is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters.config.schema import DataSection
from llm_adapters.data.example import Example
from llm_adapters.data.seeding import shuffled, stable_random
from llm_adapters.data.sources import BUILT_IN, load_numbered, load_source
from llm_adapters.errors import DataError


@dataclass(frozen=True)
class TrainingData:
    """Examples to train on and to validate on.

    Attributes:
        examples: what is trained on.
        rows: the number of each of them in the whole file (or generator), from 1.
        validation: what is not trained on; empty without ``data.validation``.
        validation_rows: the number of each of those in its file.
    """

    examples: Sequence[Example]
    rows: Sequence[int]
    validation: Sequence[Example]
    validation_rows: Sequence[int]

    @classmethod
    def of(cls, section: DataSection, seed: int) -> TrainingData:
        """Read the data of a configuration.

        Raises:
            DataError: it cannot be read, or nothing would be left to train on.
        """
        numbered = load_numbered(section.train, split="train", size=section.size, seed=seed)
        rows, examples = [place + 1 for place, _ in numbered], [example for _, example in numbered]
        _check_outputs(examples, rows, section.train)
        asked = section.validation
        if not isinstance(asked, int):
            validation = [] if asked is None else _read(asked)
            places = range(1, len(validation) + 1)
            _check_outputs(validation, places, str(asked))
            return cls(examples, rows, validation, places)
        if asked >= len(examples):
            raise DataError(
                f"data.validation holds out {asked} rows, and the training data has {len(examples)}",
                mend=f"a number below {len(examples)}",
            )
        order = shuffled(stable_random("validation", seed), range(len(examples)))
        held_out, rest = sorted(order[:asked]), sorted(order[asked:])
        (trained, its_rows), (held, their_rows) = (
            ([examples[i] for i in part], [rows[i] for i in part]) for part in (rest, held_out)
        )
        return cls(trained, its_rows, held, their_rows)


def _check_outputs(examples: Sequence[Example], rows: Sequence[int], source: str) -> None:
    """Refuse examples that teach nothing.

    Raises:
        DataError: an example has no output.
    """
    bare = [row for row, example in zip(rows, examples, strict=True) if not example.output.strip()]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {len(examples)} examples have no 'output' to train on (first: row {bare[0]})",
            mend="give every row the text that the model should write; to evaluate alone: llm-adapters evaluate",
        )


def _read(source: str) -> list[Example]:
    if source in BUILT_IN:
        raise DataError(
            f"data.validation is the generator '{source}', which would give training or test data again",
            mend="data.validation: 100 holds out 100 of the generated rows",
        )
    return load_source(source, split="train")  # never a benchmark's test side: the best would be chosen on it
