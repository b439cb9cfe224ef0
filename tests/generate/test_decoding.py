from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import llm_adapters as la
from llm_adapters.errors import UserError
from llm_adapters.generate import batch, generate
from tiny import tiny_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18], [19, 20]]
MANY = [[(7 * i + 3 * j) % 90 + 3 for j in range(1 + (5 * i) % 11)] for i in range(26)]


def _uncached(model: torch.nn.Module, prompt: list[int], limit: int, stop: set[int]) -> tuple[list[int], bool]:
    """The definition: the whole text through the model again for every token."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("family", ["llama", "bloom", "gptj", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batched_cached_decoding_is_the_definition(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    stop = {_uncached(model, PROMPTS[1], 8, set())[0][3]}  # a token that really comes, so that some rows stop early
    expected = [_uncached(model, prompt, 8, stop) for prompt in PROMPTS]
    assert any(stopped for _, stopped in expected)
    got = {
        c.prompt: (c.ids, c.stopped)
        for c in generate(model, PROMPTS, max_new_tokens=8, stop_ids=stop, batch_size=batch_size)
    }
    assert [got[i] for i in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma3_text"])
@pytest.mark.parametrize("batch_size", [4, 9])
def test_refilled_places_and_dropped_columns_change_nothing(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    stop = set(range(3, 97, 6))  # rows end at very different times
    expected = [_uncached(model, prompt, 12, stop) for prompt in MANY]
    assert 0 < sum(stopped for _, stopped in expected) < len(MANY)
    completions = list(generate(model, MANY, max_new_tokens=12, stop_ids=stop, batch_size=batch_size))
    assert sorted(c.prompt for c in completions) == list(range(len(MANY)))
    assert all((c.ids, c.stopped) == expected[c.prompt] for c in completions)


def test_every_prompt_goes_through_its_own_adapter() -> None:
    model = tiny_model("llama")
    for name in ("lora", "series", "prefix", "prompt"):
        adapter = la.attach(model, la.method(name), name)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    routes = ["lora", None, "prefix", "prompt", ["series", "lora"]]
    got = {
        c.prompt: c.ids for c in generate(model, PROMPTS, max_new_tokens=6, stop_ids=(), routes=routes, batch_size=5)
    }
    for i, route in enumerate(routes):
        with la.route(model, [route]):
            assert got[i] == _uncached(model, PROMPTS[i], 6, set())[0], route
    assert len({tuple(ids) for ids in got.values()}) == len(PROMPTS)


def test_rows_of_one_adapter_stand_together_also_when_some_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one adapter side by side are a slice of the batch, and others would be copied."""
    model = tiny_model("llama")
    for name in ("a", "b"):
        la.attach(model, la.method("lora"), name)
    routes = ["a", "b"] * 13
    seen: list[list[Any]] = []

    def recorded(model: Any, rows: Any, **options: Any) -> Any:
        seen.append(list(rows))
        return la.route(model, rows, **options)

    monkeypatch.setattr(batch.operations, "route", recorded)
    limits = [1 + (5 * i) % 9 for i in range(len(MANY))]
    list(generate(model, MANY, max_new_tokens=limits, stop_ids=(), routes=routes, batch_size=26))
    assert max(map(len, seen)) == 26
    for rows in seen:
        assert sum(one != other for one, other in pairwise(rows)) <= 1


def test_rows_that_fill_the_context_leave_no_place_beyond_it() -> None:
    model = tiny_model("gpt2")
    room = model.config.n_positions
    prompts = [[5 + i] * (room - 12) for i in range(16)]
    limits = [2 + i % 11 for i in range(15)] + [12]
    expected = [_uncached(model, prompt, limit, set())[0] for prompt, limit in zip(prompts, limits, strict=True)]
    done = generate(model, prompts, max_new_tokens=limits, stop_ids=(), batch_size=16)
    assert {c.prompt: c.ids for c in done} == dict(enumerate(expected))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        list(generate(tiny_model("llama"), PROMPTS, max_new_tokens=0, stop_ids=()))


def test_a_compiled_model_gets_its_positions() -> None:
    model = tiny_model("llama")
    expected = {c.prompt: c.ids for c in generate(model, PROMPTS, max_new_tokens=4, stop_ids=())}
    compiled = torch.compile(model, backend="eager")
    assert {c.prompt: c.ids for c in generate(compiled, PROMPTS, max_new_tokens=4, stop_ids=())} == expected


def test_what_cannot_be_decoded_is_refused_at_once() -> None:
    model = tiny_model("llama")
    room = model.config.max_position_embeddings
    for prompts, options, message in (
        ([[1] * room], {}, "longer than the"),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
        ([[1, 2]], {"routes": ["a", "b"]}, "routes has 2 entries for 1 prompts"),
    ):
        with pytest.raises(UserError, match=message):
            list(generate(model, prompts, max_new_tokens=2, stop_ids=(), **options))
    with pytest.raises(UserError, match="keeps no key–value cache"):
        list(generate(_mamba(), [[5, 6, 7, 8]], max_new_tokens=2, stop_ids=()))


def _mamba() -> Any:
    """A model whose state is no cache of keys and values."""
    config = MambaConfig(vocab_size=100, hidden_size=16, state_size=4, num_hidden_layers=2)
    return MambaForCausalLM(config).eval()
