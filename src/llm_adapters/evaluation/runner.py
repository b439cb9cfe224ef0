"""Evaluating the base and any number of adapters on sets of examples, together on one loaded model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_adapters.adapters.attach import attached
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.data.encoding import Template
from llm_adapters.data.example import Example
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.evaluation.families import Free
from llm_adapters.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from llm_adapters.evaluation.rows import Row, RowWriter
from llm_adapters.evaluation.statistics import wilson
from llm_adapters.evaluation.task import Task, tasks
from llm_adapters.generate import Completion, generate


@dataclass(frozen=True)
class Suite:
    """One set of examples, and how it is asked and judged.

    Attributes:
        task: the benchmark, or the user's own set.
        examples: each with a gold answer.
        template: how an example becomes a prompt.
        protocol: how a completion is read.
    """

    task: Task
    examples: Sequence[Example]
    template: Template
    protocol: Protocol = PROTOCOLS["standard"]

    @classmethod
    def of(cls, source: str, size: int | None, seed: int, template: str, protocol: str = "standard") -> Suite:
        """A registered benchmark, or a user's own file or generator.

        Raises:
            DataError: the source, template or protocol is unknown, or an example has no gold answer.
        """
        rules = get_protocol(protocol)
        examples = load_source(source, split="test", size=size, seed=seed)
        _check_answers(examples, source)
        name = Path(source).name.split(".")[0]
        task = tasks()[source] if source in tasks() else Free.of(name, examples)
        return cls(task, examples, get_template(rules.template or template), rules)

    @property
    def file(self) -> str:
        """Name of its prediction file."""
        standard = self.protocol.name == "standard"
        return f"{self.task.name}.jsonl" if standard else f"{self.task.name}.{self.protocol.name}.jsonl"


@dataclass(frozen=True)
class Score:
    """Accuracy on one set, with its 95 % Wilson interval; unparsed rows count as not correct."""

    adapter: str | None
    benchmark: str
    protocol: str
    total: int
    correct: int
    unparsed: int
    accuracy: float
    low: float
    high: float


def evaluate(
    model: Any,
    tokenizer: Any,
    suites: Sequence[Suite],
    adapters: Sequence[str | None],
    *,
    settings: EvaluateSection,
    folder: Path,
    on_token: Callable[[int], None] | None = None,
) -> list[Score]:
    """Decode greedily and judge: every adapter on every row of every suite, all in the same batches.

    Rows are written to ``folder`` as they are finished; rows that are there already are not asked again.

    Args:
        model: the model with the adapters attached.
        suites: the sets.
        adapters: names of attached adapters; None is the bare base.
        settings: batch size and limit of new tokens.
        folder: where the prediction files lie (a run's ``eval``).
        on_token: called with the number of tokens of every step.
    """
    model.eval()
    writers = [RowWriter(folder / suite.file) for suite in suites]
    jobs: list[tuple[int, str | None, int]] = []
    for i, (suite, writer) in enumerate(zip(suites, writers, strict=True)):
        done = {(row["adapter"], row["row"]) for row in writer.rows}
        jobs += [(i, a, r) for a in adapters for r in range(len(suite.examples)) if (a, r) not in done]
    prompts = [suites[i].template.prompt_ids(tokenizer, suites[i].examples[r]) for i, _, r in jobs]
    completions = generate(
        model, prompts, max_new_tokens=settings.max_new_tokens, stop_ids=stop_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id, batch_size=settings.batch_size, on_token=on_token,
        routes=[adapter for _, adapter, _ in jobs] if attached(model) else None,
    )  # fmt: skip
    for completion in completions:
        i, adapter, index = jobs[completion.prompt]
        writers[i].add(_row(suites[i], adapter, index, completion, tokenizer))
    scores = []
    for suite, writer in zip(suites, writers, strict=True):
        rows = writer.finish(adapters)
        scores += [score(rows, suite, adapter) for adapter in adapters]
    return scores


def score(rows: Sequence[Row], suite: Suite, adapter: str | None) -> Score:
    """The score of one adapter from the rows of a prediction file."""
    counts = Counter(row["status"] for row in rows if row["adapter"] == adapter)
    total, correct = counts.total(), counts["correct"]
    return Score(
        adapter, suite.task.name, suite.protocol.name, total, correct, counts["unparsed"], correct / total,
        *wilson(correct, total),
    )  # fmt: skip


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


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's and the generation config's end of sequence."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}


def write_summary(scores: Sequence[Score], path: Path) -> None:
    """``eval/summary.json``: one record a score."""
    path.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n", encoding="utf-8")


def _row(suite: Suite, adapter: str | None, index: int, completion: Completion, tokenizer: Any) -> Row:
    example = suite.examples[index]
    text = tokenizer.decode(completion.ids, skip_special_tokens=True).strip()
    status, answer = suite.task.judge(text, example, suite.protocol)
    return {
        "adapter": adapter, "benchmark": suite.task.name, "protocol": suite.protocol.name, "row": index,
        "question": example.instruction, "gold": example.answer, "completion": text, "answer": answer,
        "status": status, "tokens": len(completion.ids), "stopped": completion.stopped,
    }  # fmt: skip
