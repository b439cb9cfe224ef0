"""The bundled model writes the same text in a batch of any size and order as alone, with every kind of adapter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import llm_adapters as la
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.generate import generate

METHODS = ("lora", "series", "parallel", "prefix")


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """The model with an adapter of each kind, large enough to change what it writes."""
    model, tokenizer = la.load_model()
    torch.manual_seed(0)
    for name in METHODS:
        adapter = la.attach(model, la.method(name), name)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return model, tokenizer


def _texts(
    bundled: tuple[Any, Any], prompts: list[list[int]], routes: list[str], size: int | None, limits: list[int]
) -> list[Any]:
    model, tokenizer = bundled
    done = generate(
        model, prompts, max_new_tokens=limits, stop_ids={tokenizer.eos_token_id}, pad_id=tokenizer.pad_token_id,
        batch_size=size, routes=routes,
    )  # fmt: skip
    return [c.ids for c in sorted(done, key=lambda c: c.prompt)]


def _check(
    bundled: tuple[Any, Any], prompts: list[list[int]], routes: list[str], most: int, sizes: tuple[int | None, ...]
) -> None:
    limits = [most - (5 * i) % (most // 2) for i in range(len(prompts))]  # rows end, and others come, at all times
    each = zip(prompts, routes, limits, strict=True)
    alone = [_texts(bundled, [prompt], [route], 1, [limit])[0] for prompt, route, limit in each]
    assert len({tuple(ids) for ids in alone}) > len(prompts) // 4  # what is compared does differ
    for size in sizes:  # in one call, which computes the beginning that prompts share once
        assert _texts(bundled, prompts, routes, size, limits) == alone, size
    assert _texts(bundled, prompts[::-1], routes[::-1], 32, limits[::-1])[::-1] == alone


def _prompts(bundled: tuple[Any, Any], source: str, rows: int) -> list[list[int]]:
    examples = load_source(source, split="test", size=rows, seed=0)
    return [get_template("paper-eval").prompt_ids(bundled[1], example) for example in examples]


def test_the_text_is_the_same_in_any_batch(bundled: tuple[Any, Any]) -> None:
    prompts = _prompts(bundled, "word-problems", 4)
    _check(bundled, prompts * len(METHODS), [name for name in METHODS for _ in prompts], most=8, sizes=(7,))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_text_of_64_questions_is_the_same_in_any_batch(bundled: tuple[Any, Any], method: str) -> None:
    if not os.environ.get("LLM_ADAPTERS_DATA"):
        pytest.skip("LLM_ADAPTERS_DATA does not name the folder of the benchmarks")
    _check(bundled, _prompts(bundled, "gsm8k", 64), [method] * 64, most=48, sizes=(1, 7, 32, None))
