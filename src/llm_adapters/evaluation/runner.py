"""Evaluating adapters on examples: one row a prediction, one score a set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from llm_adapters.adapters.routing import RowRoute
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.data.encoding import Template
from llm_adapters.data.example import Example
from llm_adapters.errors import DataError
from llm_adapters.evaluation.judge import judge
from llm_adapters.evaluation.statistics import wilson
from llm_adapters.generate import generate


@dataclass(frozen=True)
class Score:
    """Accuracy on one set, with its 95 % Wilson interval; unparsed rows count as not correct."""

    adapter: str | None
    benchmark: str
    total: int
    correct: int
    unparsed: int
    accuracy: float
    low: float
    high: float


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    settings: EvaluateSection,
    *,
    benchmark: str,
    adapter: str | None,
    rows_file: Path,
    route: RowRoute,
    on_token: Callable[[int], None] | None = None,
) -> Score:
    """Decode greedily, judge every completion, append the rows to ``rows_file``.

    Args:
        benchmark: name of the set, for the rows and the score.
        adapter: what the rows are filed under; None is the bare base.
        route: what every row goes through.
    """
    model.eval()
    prompts = [template.prompt_ids(tokenizer, example) for example in examples]
    completions = generate(
        model, prompts, max_new_tokens=settings.max_new_tokens, stop_ids=stop_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id, batch_size=settings.batch_size, routes=[route] * len(prompts),
        on_token=on_token,
    )  # fmt: skip
    rows = []
    for completion in completions:
        example = examples[completion.prompt]
        text = tokenizer.decode(completion.ids, skip_special_tokens=True).strip()
        status, answer = judge(text, example.answer)
        rows.append({
            "adapter": adapter, "benchmark": benchmark, "row": completion.prompt, "question": example.instruction,
            "gold": example.answer, "completion": text, "answer": answer, "status": status,
            "tokens": len(completion.ids), "stopped": completion.stopped,
        })  # fmt: skip
    rows.sort(key=lambda row: row["row"])
    rows_file.parent.mkdir(exist_ok=True)
    with rows_file.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    counts = Counter(row["status"] for row in rows)
    interval = wilson(counts["correct"], len(rows))
    return Score(
        adapter, benchmark, len(rows), counts["correct"], counts["unparsed"],
        counts["correct"] / len(rows), interval.low, interval.high,
    )  # fmt: skip


def check_answers(examples: Sequence[Example], source: str) -> None:
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


def stop_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: the tokenizer's and the generation config's end of sequence."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (tokenizer.eos_token_id, *listed) if token is not None}


def write_summary(scores: Sequence[Score], path: Path) -> None:
    """``eval/summary.json``: one record a score."""
    path.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n", encoding="utf-8")
