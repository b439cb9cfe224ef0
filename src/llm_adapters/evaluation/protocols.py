"""The ways to ask and to read: ``standard``; ``paper``, exactly as the reference does; ``likelihood``, by choice.

Both end every row as correct, wrong or unparsed; the reference counts what it cannot read as wrong.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, final

from llm_adapters.errors import DataError
from llm_adapters.evaluation.clauses import TURN_TEXTS, first_turn
from llm_adapters.evaluation.judge import Judgement, as_number, decide, judge
from llm_adapters.evaluation.labels import read_label
from llm_adapters.evaluation.letters import read_letter
from llm_adapters.evaluation.options import Option

ProtocolName = Literal["paper", "standard", "likelihood"]


class Protocol(ABC):
    """How prompts are written and completions are judged."""

    name: ClassVar[ProtocolName]
    template: ClassVar[str | None]
    """The template of its prompts; None is the run's own."""
    beams: ClassVar[int]
    """How many beams its source decodes with; 1 is greedy."""
    stop_texts: ClassVar[tuple[str, ...]]
    """What ends a completion: nothing behind it is read."""
    generates: ClassVar[bool] = True
    """Whether the model writes an answer; otherwise the likeliest option is its choice."""

    @abstractmethod
    def number(self, completion: str, gold: str) -> Judgement:
        """Judge an answer to arithmetic; ``gold`` is a number."""

    @abstractmethod
    def letter(self, completion: str, gold: str, options: Sequence[Option]) -> Judgement:
        """Judge a choice among lettered options."""

    @abstractmethod
    def label(self, completion: str, gold: str, options: Sequence[Option], labels: Sequence[str]) -> Judgement:
        """Judge a choice among ``options``; ``labels`` are all that its benchmark has in any row."""

    def free(self, completion: str, gold: str) -> Judgement:
        """Judge an answer of any kind, of a user's own data."""
        return self.number(completion, gold) if as_number(gold) is not None else judge(completion, gold)


class _Anchored(Protocol):
    """Reading by the grammars of ``answers``, ``letters`` and ``labels``.

    A completion ends where it begins a new turn: a line "Question:", "### Instruction:" and the like, once there is
    something to read before it (see ``clauses``).
    """

    template = None
    beams = 1
    stop_texts = TURN_TEXTS

    def number(self, completion: str, gold: str) -> Judgement:
        return judge(first_turn(completion), gold)

    def letter(self, completion: str, gold: str, options: Sequence[Option]) -> Judgement:
        letter = read_letter(first_turn(completion), options)
        return decide(letter, correct=letter == gold)

    def label(self, completion: str, gold: str, options: Sequence[Option], labels: Sequence[str]) -> Judgement:
        known = options or [Option(label, label) for label in labels]
        label = read_label(first_turn(completion), known)
        return decide(label, correct=label == gold)


@final
class Standard(_Anchored):
    """An answer is generated, and read by the grammars."""

    name = "standard"


@final
class Likelihood(_Anchored):
    """The option whose text is likeliest after the standard prompt, by its length (see ``options.likeliest``)."""

    name = "likelihood"
    generates = False


@final
class Paper(Protocol):
    """What ``evaluate.py`` and ``commonsense_evaluate.py`` of the reference repository read (its commit 8166572).

    A completion ends at "### Response:". A number is the last match of one expression once commas are gone,
    right within 1e-3 in double precision; a letter is the first capital A to E anywhere; a label is the first
    one that stands in the text, in lower case.
    """

    name = "paper"
    template = "paper-eval"
    beams = 4
    stop_texts = ("### Response:",)

    def number(self, completion: str, gold: str) -> Judgement:
        found = re.findall(r"-?\d+\.?\d*", _response(completion).replace(",", ""))
        if not found:
            return decide(None, correct=False)
        return decide(found[-1], correct=abs(float(gold.replace(",", "")) - float(found[-1])) <= 0.001)

    def letter(self, completion: str, gold: str, options: Sequence[Option]) -> Judgement:  # noqa: ARG002
        return _first("[A-E]", completion, gold)

    def label(self, completion: str, gold: str, options: Sequence[Option], labels: Sequence[str]) -> Judgement:  # noqa: ARG002
        return _first("|".join(map(re.escape, labels)), completion, gold)


PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (Standard(), Paper(), Likelihood())}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        DataError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise DataError(f"there is no protocol '{name}'", given=name, allowed=PROTOCOLS)
    return PROTOCOLS[name]


def _response(completion: str) -> str:
    return completion.partition("### Response:")[0].strip()


def _first(pattern: str, completion: str, gold: str) -> Judgement:
    found = re.search(pattern, _response(completion))
    return decide(found[0] if found else None, correct=found is not None and found[0] == gold)
