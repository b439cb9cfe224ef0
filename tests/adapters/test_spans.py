"""Routes by spans of tokens: documents of several adapters in one packed row, each as it would be alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import engine_of, route
from llm_adapters.adapters.method import methods
from llm_adapters.adapters.streams import Stream
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import RouteError
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import token_losses
from tiny import enable_checkpointing, gap, logits, put_on, small, tiny_model
from tiny_training import examples

CPU = torch.device("cpu")


def _documents(members: int) -> list[list[Encoded]]:
    """Two documents a member, of different lengths."""
    rows = examples(2 * members)
    return [rows[2 * i : 2 * i + 2] for i in range(members)]


def _tokens(documents: list[Encoded]) -> int:
    return sum(len(document.input_ids) for document in documents)


def _losses(model: Any, names: list[str | None], documents: list[list[Encoded]], *, backward: bool) -> list[Tensor]:
    """The losses of every member's labelled tokens, from one pass."""
    with route(model, None):
        batches = Batches(model, pad_id=0, device=CPU)
    assert batches.packed
    tensors = batches.tensors([document for rows in documents for document in rows])
    with route(model, names, tokens=[_tokens(rows) for rows in documents]), batches.in_force():
        found = token_losses(model, tensors)
        if backward:
            (found * torch.linspace(0.5, 1.5, len(found))).sum().backward()
    counts = [sum(label != -100 for row in rows for label in row.labels[1:]) for rows in documents]
    return list(found.detach().split(counts))


def _gradients(adapter: Adapter) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.parameters()]
    adapter.zero_grad()
    return found


def _expect_as_alone(model: nn.Module, recipes: list[str]) -> None:
    adapters = [put_on(model, small(recipe), f"m{i}", seed=i) for i, recipe in enumerate(recipes)]
    names: list[str | None] = [adapter.name for adapter in adapters]
    documents = _documents(len(names))
    model.train()
    together = _losses(model, names, documents, backward=True)
    gradients = [_gradients(adapter) for adapter in adapters]
    weights = torch.linspace(0.5, 1.5, sum(map(len, together))).split([len(losses) for losses in together])
    for i, adapter in enumerate(adapters):
        batches = Batches(model, pad_id=0, device=CPU)
        with route(model, names[i]), batches.in_force():
            alone = token_losses(model, batches.tensors(documents[i]))
            (alone * weights[i]).sum().backward()
        assert gap(alone, together[i]) < 2e-5
        expected = _gradients(adapter)
        assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
        for gradient, wanted in zip(gradients[i], expected, strict=True):
            assert gap(gradient, wanted) < 2e-5 * max(1.0, float(wanted.abs().max()))


def test_every_method_beside_every_other_trains_as_alone() -> None:
    _expect_as_alone(tiny_model("llama"), [*methods(), "prefix", "prompt"])


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma3_text", "deepseek_v3", "mixtral"])
def test_families_with_biases_windows_latents_and_experts(family: str) -> None:
    calm = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = tiny_model(family, **calm)
    if family == "gemma3_text":
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 4
        model.config.sliding_window = 4
    ffn = ["series", "pfeiffer"] if family in ("mixtral", "deepseek_v3") else ["parallel", "series"]
    _expect_as_alone(model, ["lora", "prefix", *ffn, "prompt"])


def test_under_gradient_checkpointing() -> None:
    model = tiny_model("llama")
    enable_checkpointing(model, use_reentrant=False)
    _expect_as_alone(model, ["lora", "prefix", "prompt", "series"])


def test_the_base_and_a_stack_of_adapters_have_spans_too() -> None:
    model = tiny_model("llama")
    bare = _losses_of_base(model)
    put_on(model, small("lora"), "a")
    put_on(model, [small("prefix"), small("prompt"), small("series")], "b", seed=2)
    documents = _documents(3)
    with torch.no_grad():
        found = _losses(model, [None, ["a", "b"], "a"], documents, backward=False)  # type: ignore[list-item]
        assert gap(found[0], bare) < 1e-5
        batches = Batches(model, pad_id=0, device=CPU)
        with route(model, [["a", "b"]]), batches.in_force():
            assert gap(token_losses(model, batches.tensors(documents[1])), found[1]) < 1e-5


def _losses_of_base(model: nn.Module) -> Tensor:
    batches = Batches(model, pad_id=0, device=CPU)
    with torch.no_grad(), batches.in_force():
        return token_losses(model, batches.tensors(_documents(3)[0]))


def test_an_adapter_that_is_no_number_stays_among_its_own_tokens() -> None:
    model = tiny_model("llama")
    good = put_on(model, small("lora"), "good")
    bad = [put_on(model, small(name), name) for name in ("prefix", "prompt", "series", "parallel")]
    names: list[str | None] = ["prefix", "good", "prompt", "series", "parallel"]
    model.train()
    before = _losses(model, names, _documents(5), backward=True)
    expected = _gradients(good)
    for adapter in bad:
        with torch.no_grad():
            next(adapter.parameters()).fill_(float("inf"))
    after = _losses(model, names, _documents(5), backward=True)
    assert all(not torch.isfinite(losses).all() for i, losses in enumerate(after) if i != 1)
    assert torch.equal(after[1], before[1])
    assert all(torch.equal(a, b) for a, b in zip(_gradients(good), expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_each_adapter_draws_what_it_draws_alone(checkpointing: bool) -> None:
    model = tiny_model("llama")
    if checkpointing:
        enable_checkpointing(model, use_reentrant=False)
    recipes = [small("lora", dropout=0.5), small("lora", rank=2, dropout=0.3), small("houlsby", dropout=0.4)]
    adapters = [put_on(model, recipe, f"m{i}", seed=i) for i, recipe in enumerate(recipes)]
    names: list[str | None] = [adapter.name for adapter in adapters]
    documents = _documents(3)
    model.train()
    streams = {}
    for i, name in enumerate(names):
        torch.manual_seed(100 + i)
        streams[str(name)] = Stream({"cpu": torch.get_rng_state()})
    engine_of(model).streams = streams
    torch.manual_seed(5)
    together = _losses(model, names, documents, backward=True)
    outside = torch.rand(1)
    gradients = [_gradients(adapter) for adapter in adapters]
    engine_of(model).streams = {}
    weights = torch.linspace(0.5, 1.5, sum(map(len, together))).split([len(losses) for losses in together])
    for i, adapter in enumerate(adapters):
        torch.manual_seed(100 + i)
        batches = Batches(model, pad_id=0, device=CPU)
        with route(model, names[i]), batches.in_force():
            alone = token_losses(model, batches.tensors(documents[i]))
            (alone * weights[i]).sum().backward()
        assert torch.equal(torch.get_rng_state(), streams[str(names[i])].state["cpu"])
        assert gap(alone, together[i]) < 1e-5
        for gradient, wanted in zip(gradients[i], _gradients(adapter), strict=True):
            assert gap(gradient, wanted) < 2e-5 * max(1.0, float(wanted.abs().max()))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), outside)


def test_mistakes() -> None:
    model = tiny_model("llama")
    put_on(model, small("prefix"), "a")
    ids = torch.arange(3, 11)[None]
    for names, tokens, said in (
        (["a", "x"], [4, 4], "not attached"),
        (["a"], [4, 4], "1 entries for spans"),
        (["a", None], [8, 0], "each at least 1"),
    ):
        with pytest.raises(RouteError, match=said), route(model, names, tokens=tokens):
            pass
    with route(model, ["a", None], tokens=[4, 5]), pytest.raises(RouteError, match="9 tokens together"):
        logits(model, ids)
    with route(model, ["a", None], tokens=[4, 4]), pytest.raises(RouteError, match="packed documents"):
        logits(model, ids)
    batches = Batches(model, pad_id=0, device=CPU)
    document = Encoded(list(range(3, 11)), list(range(3, 11)), truncated=False)
    with (
        route(model, ["a", None], tokens=[4, 4]),
        batches.in_force(),
        pytest.raises(RouteError, match="two spans"),
    ):
        token_losses(model, batches.tensors([document]))
