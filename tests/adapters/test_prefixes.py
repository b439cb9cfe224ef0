"""Prefixes in attention: their equation, caches, positions and windows, and the bases they cannot join."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm_adapters.adapters.attach import attach, disable, route
from llm_adapters.errors import MethodError
from tiny import IDS, gap, logits, put_on, small, state_of, tiny_model, token_ids, two


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def test_prefix_attention_is_its_equation() -> None:
    """``Attn(Hi Wq, [Pk; Hi Wk], [Pv; Hi Wv])`` for the last token of gpt2's first layer, which has no rotation."""
    model = tiny_model("gpt2")
    adapter = put_on(model, small("prefix"), "a")
    attention, found = model.transformer.h[0].attn, {}
    attention.c_attn.register_forward_hook(lambda _m, _x, y: found.update(qkv=y))
    attention.c_proj.register_forward_pre_hook(lambda _m, args: found.update(out=args[0]))
    logits(model, IDS)
    q, k, v = (part.view(3, 6, 4, 8).transpose(1, 2) for part in found["qkv"].split(32, dim=-1))
    pk, pv = (
        table["0"].transpose(0, 1).expand(3, -1, -1, -1) for table in (adapter.prefix.keys, adapter.prefix.values)
    )
    heads = softmax_attention(q[:, :, -1:], torch.cat([pk, k], 2), torch.cat([pv, v], 2))
    assert gap(found["out"][:, -1], heads.transpose(1, 2).reshape(3, 32)) < 1e-5
    assert not torch.allclose(heads, F.scaled_dot_product_attention(q[:, :, -1:], k, v), atol=1e-2)


def test_a_row_without_a_prefix_keeps_the_positions_of_the_base() -> None:
    model = tiny_model("gpt2")
    put_on(model, small("prefix"), "a")
    ids, mask = token_ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with route(model, None):
        bare = logits(model, ids, attention_mask=mask)
    with route(model, [None, "a"]):
        mixed = logits(model, ids, attention_mask=mask)
    assert gap(mixed[0, 2:], bare[0, 2:]) < 1e-5
    assert gap(mixed[1], bare[1]) > 1e-3


def test_prefixes_follow_a_static_cache() -> None:
    model, *_ = two(first="prefix", second="prompt")
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "disable_compile": True}
    with route(model, ["a", "b", None]):
        dynamic = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        static = model.generate(IDS, attention_mask=torch.ones_like(IDS), cache_implementation="static", **options)
    assert torch.equal(static, dynamic)


def test_decoding_uses_the_prefix_that_filled_the_cache() -> None:
    model = tiny_model("llama")
    adapter = put_on(model, small("p_tuning"), "a")
    calls: list[int] = []
    adapter.p_tuning.register_forward_hook(lambda *_: calls.append(1))
    model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
    assert len(calls) == 1  # once for the prompt, not once a token
    logits(model, IDS)
    assert len(calls) == 2


def test_a_sliding_window_slides_over_the_input_only() -> None:
    model = tiny_model("gemma3_text", sliding_window=4, layer_types=["sliding_attention"] * 2)
    ids = token_ids(1, 12)
    adapter = put_on(model, small("prefix"), "a")
    with torch.no_grad():
        adapter.prefix.values["0"].mul_(5.0)
        far = model(ids).logits
        step = model(ids[:, :8], use_cache=True)
        rest = model(ids[:, 8:], past_key_values=step.past_key_values).logits
    assert gap(rest, far[:, 8:]) < 1e-5
    disable(model)
    assert gap(far[:, -1], logits(model, ids)[:, -1]) > 1e-2  # beyond the window the prefix is still seen


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("falcon:multi_query", "prefix", {"alibi": True}, "with alibi=True"),
    ("minimax", "prefix", {"num_local_experts": 2}, "no key–value cache that a prefix could join"),
    ("openai-gpt", "prompt", {"num_key_value_heads": None}, "no layer of this openai-gpt model keeps keys and values"),
    (
        "gemma3n_text",
        "prompt",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [48] * 4,
        },
        r"layers \[2, 3\] of this gemma3n_text model keep no keys and values",
    ),
    (
        "lfm2",
        "prompt",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        r"layers \[0\] of this lfm2 model keep no keys and values",
    ),
]


@pytest.mark.parametrize(("family", "name", "config", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_bases_that_virtual_tokens_cannot_join(family: str, name: str, config: dict[str, Any], words: str) -> None:
    model = tiny_model(family, **config)
    before = state_of(model)
    with pytest.raises(MethodError, match=words):
        attach(model, small(name))
    assert state_of(model) == before
    put_on(model, small("lora"), "a")  # what it can be mended with
    assert gap(logits(model, IDS), logits(tiny_model(family, **config), IDS)) > 1e-3


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_attention_without_masks_is_refused(name: str) -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(MethodError, match="do not run with attn_implementation='flash_attention_2'"):
        attach(model, small(name))
    assert state_of(model) == state_of(tiny_model("llama"))
    model.config._attn_implementation = "sdpa"
    attach(model, small(name))
    model.config._attn_implementation = "flash_attention_2"  # changed afterwards
    with pytest.raises(MethodError, match="do not run with attn_implementation='flash_attention_2'"):
        logits(model, IDS)
