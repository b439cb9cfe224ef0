"""Tiny randomly initialised causal language models of every family, and helpers to run them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach
from llm_adapters.adapters.method import Method, method, methods
from llm_adapters.errors import ModelError, UserError
from llm_adapters.model.loading import load_model

VOCABULARY, PAD = 97, 0
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GROUPS: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 48,
}
_DENSE_FIRST: dict[str, Any] = {**_EXPERTS, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_LATENT: dict[str, Any] = {
    **_DENSE_FIRST,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 12,
}
# What a family needs beside the common fields to be tiny; None takes a common field out.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "bloom": _NO_GROUPS,
    "gptj": {**_NO_GROUPS, "rotary_dim": 4},
    "opt": {**_NO_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": _NO_GROUPS,
    "gpt_neo": {**_NO_GROUPS, "attention_types": [[["global", "local"], 1]], "window_size": 64},
    "gpt_neox": _NO_GROUPS,
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {},
    "falcon:multi_query": {**_NO_GROUPS, "multi_query": True, "new_decoder_architecture": False},
    "falcon:new": {**_NO_GROUPS, "new_decoder_architecture": True, "num_kv_heads": 2},
    "mpt": _NO_GROUPS,
    "olmo": {},
    "olmo2": {},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "phimoe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "granitemoe": _EXPERTS,
    "llama4_text": _EXPERTS,
    "ernie4_5_moe": _EXPERTS,
    "glm4_moe": _DENSE_FIRST,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "stablelm": {},
    "cohere": {},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "granite": {},
    "glm": {},
    "glm4": {},
    "starcoder2": {},
    "codegen": {**_NO_GROUPS, "rotary_dim": 4},
    "gpt_bigcode": {**_NO_GROUPS, "multi_query": True},
    "xglm": {**_NO_GROUPS, "d_model": 32, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2},
    "biogpt": _NO_GROUPS,
    "smollm3": {},
    "nemotron": {},
    "helium": {},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "persimmon": _NO_GROUPS,
    "ernie4_5": {},
    "apertus": {},
    "arcee": {},
    "hunyuan_v1_dense": {},
    "seed_oss": {},
    "diffllama": {},
    "nanochat": {},
}
ALL_FAMILIES = list(_FAMILIES)

_built: dict[str, PreTrainedModel] = {}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The config of a tiny model; see ``tiny_model``."""
    fields = {**_COMMON, **_FAMILIES.get(model_type, {}), **overrides}
    given = {key: value for key, value in fields.items() if value is not None}
    return AutoConfig.for_model(model_type.partition(":")[0], **given)


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of two layers of width 32 in eval mode, the same numbers on every call, shared with nobody.

    Args:
        model_type: ``config.model_type``, or a variant of it such as ``falcon:new``.
        seed: of the weights.
        overrides: fields of the config; None takes one out.
    """
    key = json.dumps([model_type, seed, overrides], sort_keys=True)
    if key not in _built:
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides)).eval()
        _draw_weights(model, seed)
        model.generation_config.eos_token_id = None  # random models would stop by chance
        _built[key] = model
    return copy.deepcopy(_built[key])


@torch.no_grad()
def _draw_weights(model: nn.Module, seed: int) -> None:
    """Wide enough that attention is far from uniform and no layer is near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.2, generator=generator)
        else:
            centre = 1.0 if parameter.mean() > 0.5 else 0.0
            parameter.normal_(mean=centre, std=0.05, generator=generator)


# What makes a method small; fields that it lacks are left out, fields not named here keep their defaults.
_SMALL = {"bottleneck": 6, "rank": 3, "alpha": 6.0, "tokens": 3}


def small(name: str, **fields: Any) -> Method:
    """A method at a size for tiny models."""
    known = methods()[name].model_fields
    return method(name, **{key: value for key, value in _SMALL.items() if key in known} | fields)


@torch.no_grad()
def randomise(adapter: Adapter, *, seed: int = 1, std: float = 0.2) -> Adapter:
    """Away from the initialisation, where zeros would let many a test pass for nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.copy_(torch.empty_like(parameter, device="cpu").normal_(std=std, generator=generator))
    return adapter


def token_ids(rows: int, tokens: int, *, seed: int = 0) -> Tensor:
    """Random ids (rows, tokens) without the special ones."""
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


IDS = token_ids(3, 6)


def logits(model: nn.Module, ids: Tensor | None = None, **inputs: Any) -> Tensor:
    """Logits (B, T, V) without gradients."""
    if ids is not None:
        inputs["input_ids"] = ids
    with torch.no_grad():
        return model(**inputs).logits


def gap(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).detach().abs().max())


def enable_checkpointing(model: PreTrainedModel, **options: Any) -> None:
    """Gradient checkpointing, by the newer of its two names where transformers has it."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options or None)


class Letters:
    """A tokenizer for tests: one id a letter."""

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % (VOCABULARY - 3) for letter in text]}


def put_on(model: nn.Module, recipe: Method | list[Method], name: str, seed: int = 1) -> Adapter:
    """A randomised adapter."""
    return randomise(attach(model, recipe, name, tokenizer=Letters()), seed=seed)


def two(family: str = "llama", first: str = "lora", second: str = "series") -> tuple[nn.Module, Adapter, Adapter]:
    """A model with the adapters a and b."""
    model = tiny_model(family)
    return model, put_on(model, small(first), "a"), put_on(model, small(second), "b", seed=2)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that attaching may change."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    return {"hooks": hooks, "flags": flags, "modules": [name for name, _ in model.named_modules()]}


def refused(
    source: str | Path,
    *words: str,
    call: Callable[..., Any] = load_model,
    kind: type[UserError] = ModelError,
    **options: Any,
) -> str:
    """Loading fails in a few lines that hold these words and a way out; the message."""
    with pytest.raises(kind) as caught:
        call(source, **options)
    message = str(caught.value)
    assert "mend:" in message or "nearest:" in message, message
    assert len(message.splitlines()) <= 4, message
    for word in words:
        assert word in message, (word, message)
    return message
