"""Rows that begin at like columns read the cache together, and what they read is enough."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.generate import batch, generate
from llm_adapters.model import row_blocks as module
from llm_adapters.model.row_blocks import BLOCKWISE, Block, blocks_of, reading_by_blocks
from tiny import VOCABULARY, put_on, small, tiny_model

FAMILIES = ["llama", "qwen3", "gemma3_text", "olmo2", "phi3", "mixtral", "glm4", "cohere2", "gpt2", "bloom", "mpt"]
PROMPTS = [[(7 * i + 3 * j) % 90 + 3 for j in range(1 + (17 * i) % 61)] for i in range(20)]


@given(st.lists(st.integers(0, 500), max_size=40))
def test_every_row_is_in_one_block_that_begins_early_enough(firsts: list[int]) -> None:
    blocks = blocks_of(firsts, module._CALL // 192)
    assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(len(firsts)))
    for rows, first in blocks:
        own = firsts[rows]
        assert first == min(own)
        assert sum(own) - first * len(own) <= 192


def test_rows_alike_are_one_block_and_others_are_not() -> None:
    assert blocks_of([5] * 30, 1536) == [(slice(0, 30), 5)]
    assert blocks_of([0, 0, 400, 400], 1536) == [(slice(0, 2), 0), (slice(2, 4), 400)]
    assert blocks_of([400, 400, 0, 0], 1536) == [(slice(0, 2), 400), (slice(2, 4), 0)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefixed", [False, True])
def test_texts_are_those_of_each_prompt_alone(family: str, prefixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if prefixed and family == "mpt":
        pytest.skip("virtual tokens are inexact there with padding on the left")
    monkeypatch.setattr(module, "_CALL", 500)  # many blocks
    seen: list[int] = []

    def counted(model: Any, blocks: Sequence[Block], columns: int) -> Any:
        seen.append(len(blocks))
        return reading_by_blocks(model, blocks, columns)

    monkeypatch.setattr(batch, "reading_by_blocks", counted)
    model: Any = tiny_model(family)
    if prefixed:  # which stands before the cache
        put_on(model, small("prefix"), "a")
    stop = set(range(3, VOCABULARY, 9))  # rows end at very different times, and others take their places

    def completed(prompts: list[list[int]], size: int) -> dict[int, list[int]]:
        found = generate(model, prompts, max_new_tokens=12, stop_ids=stop, batch_size=size)
        return {each.prompt: each.ids for each in found}

    together = completed(PROMPTS, 7)
    assert max(seen) > 1
    assert together == {i: completed([prompt], 1)[0] for i, prompt in enumerate(PROMPTS)}


def test_the_attention_is_the_models_own_afterwards() -> None:
    model: Any = tiny_model("llama")

    def fail() -> None:
        with reading_by_blocks(model, [(slice(0, 1), 0), (slice(1, 2), 9)], 20):
            assert model.config._attn_implementation == BLOCKWISE
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "sdpa"
    with reading_by_blocks(model, [], 20):
        assert model.config._attn_implementation == "sdpa"


def test_what_is_compiled_and_what_runs_elsewhere_stay_as_they_are() -> None:
    compiled: Any = torch.compile(tiny_model("llama"))
    with reading_by_blocks(compiled, [(slice(0, 1), 0)], 20):
        assert compiled.config._attn_implementation == "sdpa"
    model: Any = tiny_model("llama")
    ids = torch.arange(3, 11)[None]
    expected = model(ids).logits
    with reading_by_blocks(model, [(slice(0, 1), 0)], 8):
        torch.testing.assert_close(model(ids).logits, expected)  # more than one token a row
        found: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: found.append(model(ids).logits))  # which has no step under way
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "mixtral"])
def test_a_row_that_ended_long_before_the_window_spoils_no_other(family: str) -> None:
    model: Any = tiny_model(family, sliding_window=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # texts that go on for long
    prompts = [list(range(5, 5 + length)) for length in (9, 3, 1, 7, 2, 8, 4, 6, 5)]

    def completed(prompts: list[list[int]], limits: list[int], size: int) -> dict[int, list[int]]:
        found = generate(model, prompts, max_new_tokens=limits, stop_ids=(), batch_size=size)
        return {each.prompt: each.ids for each in found}

    limits = [2, *[24] * 8]  # too few empty places to be taken away
    together = completed(prompts, limits, 9)
    assert together == {i: completed([p], [n], 1)[0] for i, (p, n) in enumerate(zip(prompts, limits, strict=True))}
