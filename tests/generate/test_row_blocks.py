"""Rows that begin at like columns read the cache together, and what they read is enough."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.generate import batch, generate
from llm_adapters.model import row_blocks as module
from llm_adapters.model.row_blocks import BLOCKWISE, Reading, Shared, blocks_of, reading_by_blocks
from tiny import VOCABULARY, put_on, small, tiny_model

FAMILIES = ["llama", "qwen3", "gemma3_text", "olmo2", "phi3", "mixtral", "glm4", "cohere2", "gpt2", "bloom", "mpt"]
SHARING = {"llama", "qwen3", "gemma3_text", "olmo2", "phi3", "mixtral", "glm4", "cohere2", "mistral", "gpt2"}
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

    def counted(model: Any, reading: Reading | None, columns: int) -> Any:
        seen.append(len(reading.blocks) if reading else 0)
        return reading_by_blocks(model, reading, columns)

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


def test_rows_that_begin_alike_share_where_it_is_worth_it() -> None:
    beginnings = [("a", 400)] * 30 + [("b", 400)] * 2 + [("a", 400)] * 20 + [("c", 0)] * 9
    found = Reading.of(list(range(61)), beginnings, 1536)
    assert found.shared == [Shared(slice(0, 30), 400), Shared(slice(32, 52), 400)]
    assert found.hidden is not None
    for row in range(61):
        columns = found.hidden[row].nonzero().flatten().tolist()
        assert columns == (list(range(row, row + 400)) if row < 30 or 32 <= row < 52 else [])
    behind = [first for rows, first in found.behind for _ in range(rows.start, rows.stop)]
    assert all(first <= row + 400 * (row < 30 or 32 <= row < 52) for row, first in enumerate(behind))
    assert Reading.of([0] * 9, [("a", 5)] * 9, 1536).shared == ()


@pytest.mark.parametrize(
    ("family", "window"),
    [(family, False) for family in (*FAMILIES, "deepseek_v2", "mistral")]
    + [(family, True) for family in ("gemma3_text", "mistral", "mixtral", "phi3")],
)
@pytest.mark.parametrize("routed", [False, True])
def test_a_beginning_that_is_read_once_changes_no_text(
    family: str, window: bool, routed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CALL", 500)  # many blocks, and beginnings read apart
    monkeypatch.setattr(module, "_WORTH", 8)
    parts: list[int] = []
    apart = module._apart

    def counted(reading: Reading, *rest: Any) -> Any:
        parts.append(len(reading.shared))
        return apart(reading, *rest)

    monkeypatch.setattr(module, "_apart", counted)
    model: Any = tiny_model(family, **({"sliding_window": 6} if window else {}))
    names: list[Any] = [None]
    if routed:
        names = ["a", "b"]
        for name in names:
            put_on(model, small("lora"), name)
    first, second = list(range(20, 45)), list(range(50, 70))
    prompts = [(first if i % 3 else second) + [3 + i] * (1 + i % 5) for i in range(22)]
    routes = [names[i % len(names)] for i in range(len(prompts))]
    stop = set(range(3, VOCABULARY, 9))

    def completed(prompts: list[list[int]], routes: list[Any], size: int) -> dict[int, list[int]]:
        found = generate(
            model, prompts, max_new_tokens=12, stop_ids=stop, batch_size=size, routes=routes if routed else None
        )
        return {each.prompt: each.ids for each in found}

    together = completed(prompts, routes, 16)
    seen = max(parts, default=0)
    assert together == {i: completed([prompt], [routes[i]], 1)[0] for i, prompt in enumerate(prompts)}
    shares = family in SHARING and not (window and family != "gemma3_text")  # which has layers without a window too
    assert (seen > 1) == shares


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_two_parts_are_the_attention_of_the_whole(dtype: torch.dtype) -> None:
    firsts = [0, 3, 3, 5, 8, 8]
    q = torch.randn(6, 6, 1, 16).to(dtype) * 3
    k, v = (torch.randn(6, 2, 40, 16).to(dtype) for _ in range(2))
    mask = torch.ones(6, 1, 1, 40, dtype=torch.bool)
    for row, first in enumerate(firsts):
        mask[row, ..., :first] = False
        for states in (k, v):
            states[row, :, first : first + 20] = states[0, :, :20]
    reading = Reading.of(firsts, [("a", 20)] * 6, 10**6)
    assert reading.shared == [Shared(slice(0, 6), 20)]
    masks, apart = module._Step(reading, 40).masks_of(mask, dtype)
    assert apart
    found = module._apart(reading, masks, (q, k, v), None)
    whole = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask, enable_gqa=True
    ).transpose(1, 2)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(found.double(), whole, rtol=tolerance, atol=tolerance)


def test_the_attention_is_the_models_own_afterwards() -> None:
    model: Any = tiny_model("llama")

    def fail() -> None:
        with reading_by_blocks(model, Reading([(slice(0, 1), 0), (slice(1, 2), 9)]), 20):
            assert model.config._attn_implementation == BLOCKWISE
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "sdpa"
    with reading_by_blocks(model, None, 20):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(4)}])
def test_an_attention_with_more_to_it_goes_the_models_way(
    option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "sdpa_attention_forward", lambda *_given, **options: asked.append(options))
    q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 5, 8)
    token = module._step.set(module._Step(Reading([(slice(0, 1), 0)]), 5))
    try:
        module.blockwise_attention(torch.nn.Identity(), q, k, k, None, scaling=0.3)
        assert not asked
        module.blockwise_attention(torch.nn.Identity(), q, k, k, None, scaling=0.3, **option)
    finally:
        module._step.reset(token)
    assert asked == [{"scaling": 0.3, **option}]


def test_what_is_compiled_and_what_runs_elsewhere_stay_as_they_are() -> None:
    compiled: Any = torch.compile(tiny_model("llama"))
    with reading_by_blocks(compiled, Reading([(slice(0, 1), 0)]), 20):
        assert compiled.config._attn_implementation == "sdpa"
    model: Any = tiny_model("llama")
    ids = torch.arange(3, 11)[None]
    expected = model(ids).logits
    with reading_by_blocks(model, Reading([(slice(0, 1), 0)]), 8):
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
