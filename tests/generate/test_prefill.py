"""What prompts have in common is computed once, and nothing is changed by it."""

from typing import Any

import pytest
import torch

import llm_adapters as la
from llm_adapters.generate import generate
from tiny import tiny_model

BEGINNING = list(range(20, 32))
PROMPTS = [BEGINNING + [40 + i] * (1 + i % 4) for i in range(12)]


def _alone(model: torch.nn.Module, prompt: list[int], limit: int) -> list[int]:
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "bloom", "gptj", "gemma3_text"])
@pytest.mark.parametrize("method", [None, "lora", "prefix", "prompt"])
def test_a_shared_beginning_is_computed_once_a_route(family: str, method: str | None) -> None:
    model = tiny_model(family)
    if method is not None:
        adapter = la.attach(model, la.method(method), "it")
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    tokens: list[int] = []

    def count(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            tokens.append(kwargs["input_ids"].numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    prompts = [*PROMPTS, BEGINNING]  # one prompt is the beginning and no more
    got = {c.prompt: c.ids for c in generate(model, prompts, max_new_tokens=5, stop_ids=(), batch_size=4)}
    hook.remove()
    assert sum(tokens) <= len(BEGINNING) + sum(4 for _ in prompts)
    for i, prompt in enumerate(prompts):
        assert got[i] == _alone(model, prompt, 5)


def test_prompts_of_one_length_and_of_one_token_need_no_padding() -> None:
    model = tiny_model("llama")
    prompts = [[7], [9], [7]]
    got = {c.prompt: c.ids for c in generate(model, prompts, max_new_tokens=4, stop_ids=())}
    assert [got[i] for i in range(3)] == [_alone(model, prompt, 4) for prompt in prompts]
