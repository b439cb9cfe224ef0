"""What the bundled model really wrote, before and after training, with what a reader takes it to say.

Each line of ``real_cases/*.jsonl`` is a completion, the gold answer, and the answer that each protocol must read
(null: none can be read). Checked by hand; no question stands there, so choices are read by their labels alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_adapters.data.ngrams import N
from llm_adapters.data.questions import words
from llm_adapters.data.registry import BENCHMARKS, load_benchmark
from llm_adapters.evaluation.families import Arithmetic, Letters, Options
from llm_adapters.evaluation.protocols import PROTOCOLS
from llm_adapters.evaluation.task import get_task

FOLDER = Path(__file__).parent / "real_cases"
CASES = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in FOLDER.glob("*.jsonl")}


def test_every_family_has_forty_cases() -> None:
    assert set(CASES) == {"arithmetic", "letters", "options"}
    assert all(len(cases) >= 40 for cases in CASES.values())


@pytest.mark.parametrize(("family", "row"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
@pytest.mark.parametrize("protocol", ["standard", "paper"])
def test_the_answer_is_what_a_reader_takes_it_for(family: str, row: int, protocol: str) -> None:
    case: dict[str, Any] = CASES[family][row]
    task, rules = get_task(case["benchmark"]), PROTOCOLS[protocol]
    completion, gold = case["completion"], case["gold"]
    if isinstance(task, Options):
        found = rules.label(completion, gold, (), task.labels)
    elif isinstance(task, Letters):
        found = rules.letter(completion, gold, ())
    else:
        assert isinstance(task, Arithmetic)
        found = rules.number(completion, gold)
    assert found.answer == case[protocol]
    assert (found.status == "unparsed") == (case[protocol] is None)


def _grams(text: str) -> set[tuple[str, ...]]:
    each = words(text)
    return {tuple(each[i : i + N]) for i in range(len(each) - N + 1)}


@pytest.mark.skipif(not os.environ.get("LLM_ADAPTERS_DATA"), reason="needs the benchmark files: set LLM_ADAPTERS_DATA")
def test_no_completion_repeats_a_question() -> None:
    written = {gram for cases in CASES.values() for case in cases for gram in _grams(case["completion"])}
    for name in BENCHMARKS:
        for row, example in enumerate(load_benchmark(name)):
            shared = written & _grams(f"{example.instruction}\n{example.input}")
            assert not shared, f"{name}, row {row}: {' '.join(min(shared))}"
