"""Sites are found by structure in every family, and adapters act at them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llm_adapters.adapters.attach import attach, detach, route
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.method import method
from llm_adapters.errors import MethodError, ModelError, SiteError
from llm_adapters.model.selection import select
from llm_adapters.model.sites import find_sites
from tiny import (
    ALL_FAMILIES,
    VOCABULARY,
    Letters,
    gap,
    logits,
    randomise,
    small,
    tiny_config,
    tiny_model,
    token_ids,
)

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
# Where a family departs from attn.q, k, v, o and ffn.gate, up, down.
FUSED = ["bloom", "gpt2", "gpt_neox", "phi3", "falcon:multi_query", "falcon:new", "mpt", "codegen", "gpt_bigcode"]
FUSED += ["persimmon"]
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "granitemoe", "llama4_text"]
UNGATED = ["bloom", "gptj", "opt", "gpt2", "gpt_neo", "gpt_neox", "phi", "falcon:multi_query", "falcon:new", "mpt"]
UNGATED += ["starcoder2", "codegen", "gpt_bigcode", "xglm", "biogpt", "nemotron", "persimmon", "apertus", "arcee"]
UNGATED += ["nanochat"]


def positions(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Position ids, for families that take them; those with absolute positions need them under padding."""
    takes = "position_ids" in inspect.signature(type(model).forward).parameters
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes else {}


@every_family
def test_the_roles_that_a_family_has(family: str) -> None:
    names = find_sites(tiny_model(family)).names()
    attention = ["attn.qkv", "attn.o"] if family in FUSED else ["attn.q", "attn.k", "attn.v", "attn.o"]
    if family.startswith("deepseek"):  # keys and values come from one latent projection
        attention = ["attn.q", "attn.o"]
    feed_forward = ["ffn.gate", "ffn.up", "ffn.down"]
    if family in MIXTURES:
        feed_forward = []
    elif family in UNGATED:
        feed_forward = ["ffn.up", "ffn.down"]
    elif family in {"phi3", "glm", "glm4"}:
        feed_forward = ["ffn.gate_up", "ffn.down"]
    assert names == [*attention, *feed_forward, "attn", "ffn", "block", "embed"]


@every_family
def test_sites_are_what_the_forward_pass_goes_through(family: str) -> None:
    model, ids = tiny_model(family), token_ids(2, 5)
    sites = find_sites(model)
    assert len(sites.layers) == len(sites.blocks) == 2
    assert sites.width == 32
    entered, left, order = {}, {}, iter(range(1000))

    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        assert module not in entered
        entered[module] = (next(order), (args[0] if args else kwargs["hidden_states"]).shape[-1])

    def leaving(module: nn.Module, _args: Any, output: Any) -> None:
        left[module] = (next(order), (output[0] if isinstance(output, tuple) else output).shape[-1])

    for module in {module for site in sites for module in (site.input, site.output)}:
        module.register_forward_pre_hook(entering, with_kwargs=True)
        module.register_forward_hook(leaving)
    logits(model, ids)
    for site in sites:
        assert model.get_submodule(site.path) is site.output
        assert left[site.output][1] == site.out_features
        assert site.name == "embed" or entered[site.input][1] == site.in_features
    for layer in sites.layers:
        span = {name: (entered[site.input][0], left[site.output][0]) for name, site in layer.items()}
        for name, (start, end) in span.items():
            outer = span[name.partition(".")[0] if "." in name else "block"]
            assert outer[0] <= start < end <= outer[1], name
        assert all(span[name][1] <= span["attn.o"][0] for name in span if name in ("attn.q", "attn.k", "attn.v"))
        for up in ("ffn.gate", "ffn.up", "ffn.gate_up"):
            assert up not in span or span[up][1] < span["ffn.down"][0]


@every_family
@pytest.mark.parametrize("name", ["lora", "series"])
def test_adapters_at_the_defaults(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(3, 6)
    bare = logits(model, ids)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    adapter = attach(model, small(name))
    assert adapter.count() == adapter.methods[0].count(adapter.base) > 0
    assert torch.equal(logits(model, ids), bare)
    randomise(adapter)
    assert gap(logits(model, ids), bare) > 1e-2
    model(ids, labels=ids).loss.backward()
    flat = {key for key, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert flat == set()
    detach(model)
    assert torch.equal(logits(model, ids), bare)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert model.state_dict().keys() == state.keys()
    assert all(p.grad is None for p in model.parameters())
    assert {key: p.requires_grad for key, p in model.named_parameters()} == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@every_family
def test_a_prefix_from_text_is_the_text(family: str) -> None:
    model, ids, text = tiny_model(family), token_ids(3, 6), "sums"
    bare = logits(model, ids)
    real = torch.tensor(Letters()(text)["input_ids"]).expand(3, -1)
    expected = logits(model, torch.cat([real, ids], 1))[:, 4:]
    adapter = attach(model, method("prefix", tokens=4, init="text", init_text=text), tokenizer=Letters())
    assert adapter.count() == adapter.methods[0].count(adapter.base)
    assert gap(logits(model, ids), expected) < 1e-5
    assert gap(expected, bare) > 1e-2
    randomise(adapter)
    model(ids, labels=ids).loss.backward()
    flat = {key for key, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert flat == set()
    detach(model)
    assert torch.equal(logits(model, ids), bare)


def padded(side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ids and mask (3, 7), and the rows without padding."""
    rows = [token_ids(1, n, seed=n)[0] for n in (7, 4, 5)]
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(7 - len(row), None) if side == "left" else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask, rows


def assert_rows_are_alone(family: str, side: str) -> None:
    model, keys = tiny_model(family), ["a", None, "b"]
    randomise(attach(model, small("prompt", tokens=2), "a"))
    randomise(attach(model, small("prefix", tokens=5), "b"))
    ids, mask, rows = padded(side)
    with route(model, keys):
        together = logits(model, ids, attention_mask=mask, **positions(model, mask))
    for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
        with route(model, key):
            assert gap(together[i][mask[i].bool()], logits(model, row[None])[0]) < 1e-5, (side, i)


COLUMNS = "MPT's ALiBi counts columns, so padding between a prefix and the input moves the prefix away"


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_virtual_tokens_in_a_padded_and_routed_batch(family: str, side: str, request: pytest.FixtureRequest) -> None:
    if (family, side) == ("mpt", "left"):
        request.applymarker(pytest.mark.xfail(reason=COLUMNS, strict=True))
    assert_rows_are_alone(family, side)


@every_family
def test_virtual_tokens_are_decoded_with_a_cache(family: str) -> None:
    model, (ids, mask, _) = tiny_model(family), padded("left")
    randomise(attach(model, small("prompt", tokens=2), "a"))
    randomise(attach(model, small("prefix", tokens=5), "b"))
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    with route(model, ["a", None, "b"]):
        found = model.generate(ids, attention_mask=mask, output_logits=True, **options)
        sequences, last = found.sequences, torch.ones(3, 3, dtype=torch.long)
        whole = torch.cat([mask, last], 1)[:, :-1]
        full = logits(model, sequences[:, :-1], attention_mask=whole, use_cache=False, **positions(model, whole))
    assert gap(torch.stack(found.logits, 1), full[:, -3:]) < 1e-5
    assert torch.equal(sequences[:, -3:], full[:, -3:].argmax(-1))


def test_paths_and_spans() -> None:
    llama = find_sites(tiny_model("llama"))
    paths = {site.name: site.path for site in llama.layers[1].values()}
    assert paths == {
        "attn.q": "model.layers.1.self_attn.q_proj",
        "attn.k": "model.layers.1.self_attn.k_proj",
        "attn.v": "model.layers.1.self_attn.v_proj",
        "attn.o": "model.layers.1.self_attn.o_proj",
        "ffn.gate": "model.layers.1.mlp.gate_proj",
        "ffn.up": "model.layers.1.mlp.up_proj",
        "ffn.down": "model.layers.1.mlp.down_proj",
        "attn": "model.layers.1.self_attn",
        "ffn": "model.layers.1.mlp",
        "block": "model.layers.1",
    }
    assert llama.embed.path == "model.embed_tokens"
    bloom = find_sites(tiny_model("bloom")).layers[0]  # its sublayers add the residual by themselves
    assert bloom["attn"].path == "transformer.h.0.self_attention.dense"
    assert bloom["ffn"].path == "transformer.h.0.mlp.dense_4h_to_h"
    opt = find_sites(tiny_model("opt")).layers[0]  # its feed-forward is no module of its own
    assert opt["ffn"].path == "model.decoder.layers.0.fc2"
    assert opt["ffn"].input is opt["ffn.up"].input
    gpt2 = find_sites(tiny_model("gpt2")).layers[0]  # Conv1D stores its weight as (in, out)
    assert (gpt2["ffn.up"].in_features, gpt2["ffn.up"].out_features) == (32, 128)
    neo = find_sites(tiny_model("gpt_neo")).layers[0]  # one module deeper
    assert neo["attn.q"].path == "transformer.h.0.attn.attention.q_proj"
    assert [site.name for site in find_sites(tiny_model("bloom"))][:3] == ["embed", "attn.qkv", "attn.o"]


def test_a_layer_without_the_site_is_named() -> None:
    model = tiny_model("deepseek_v3")  # its first layer is dense, its second a mixture of experts
    sites = find_sites(model)
    assert [site.layer for site in select(sites, ["ffn.up"])] == [0]
    with pytest.raises(SiteError, match=r"(?s)layers \[1\] have no site 'ffn.up'.*layers: \[0\]"):
        select(sites, ["ffn.up"], "last:2")


@pytest.mark.parametrize("inside", ["model", "decoder"])
def test_a_decoder_without_its_head(inside: str) -> None:
    causal, ids = tiny_model("llama"), token_ids(2, 5)
    bare = causal.get_decoder() if inside == "decoder" else causal.model
    expected = bare(ids).last_hidden_state
    adapter = attach(bare, small("lora"))
    randomise(adapter)
    assert gap(bare(ids).last_hidden_state.detach(), expected.detach()) > 1e-2
    detach(bare)
    assert torch.equal(bare(ids).last_hidden_state, expected)


# -- what is no decoder -----------------------------------------------------------------------------


def test_an_encoder_decoder_is_refused() -> None:
    config = AutoConfig.for_model("t5", vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match=r"T5ForConditionalGeneration is an encoder–decoder model(?s:.)*mend: "):
        attach(AutoModelForSeq2SeqLM.from_config(config), small("lora"))


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_a_model_without_attention_is_refused(family: str) -> None:
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    words = r"no layer of 'backbone.layers' has an attention sublayer; layer 0 has: norm \(.*\), mixer \(.*Mixer\)"
    with pytest.raises(ModelError, match=words):
        find_sites(AutoModelForCausalLM.from_config(config))


def test_an_unknown_structure_prints_what_was_found() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny_config("llama")
            self.stages = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    with pytest.raises(ModelError, match=r"Odd has no list of 2 decoder layers; lists found: stages \(3\)"):
        find_sites(Odd())
    with pytest.raises(ModelError, match="Linear has no config: a transformers model is needed"):
        find_sites(nn.Linear(2, 2))


# -- the meta device --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> nn.Module:
    """LLaMA-7B's shape without memory."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        (method("lora", rank=8), 19_988_480),  # as peft counts target_modules="all-linear"
        (method("lora", rank=32, sites=["attn.q", "attn.k", "attn.v", "ffn.up", "ffn.down"]), 56_098_816),
        (method("series"), 32 * 2 * 256 * 4096),
        (method("parallel"), 32 * 2 * 256 * (4096 + 11008)),
        (method("houlsby"), 32 * 2 * (64 * 2 * 4096 + 64 + 4096)),
        (method("prefix", tokens=10), 10 * 32 * 2 * 4096),
        (method("prefix", tokens=10, reparametrization=512), 10 * 4096 + 4097 * 512 + 513 * 32 * 2 * 4096),
        (method("prompt", tokens=20), 20 * 4096),
    ],
    ids=lambda value: value.name() if hasattr(value, "name") else "",
)
def test_parameters_are_counted_on_the_meta_device(large: nn.Module, recipe: Any, count: int) -> None:
    sites = find_sites(large)
    assert len(sites.layers) == 32
    assert recipe.count(Base(large, sites)) == count


def test_lora_is_attached_on_the_meta_device(large: nn.Module) -> None:
    adapter = attach(large, method("lora", rank=8))
    assert adapter.count() == 19_988_480
    assert all(p.is_meta for p in adapter.parameters())
    out = large(torch.zeros(1, 3, dtype=torch.long, device="meta"))
    assert out.logits.shape == (1, 3, 32000)
    detach(large)
    assert all(p.requires_grad for p in large.parameters())


def test_methods_that_a_base_refuses_are_refused_when_counting() -> None:
    model = tiny_model("falcon:multi_query", alibi=True)
    with pytest.raises(MethodError, match="with alibi=True"):
        method("prefix").count(Base(model, find_sites(model)))
