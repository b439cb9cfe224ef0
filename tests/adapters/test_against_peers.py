"""The same weights give the same logits as peft, as the formulas of the papers, and as real text before the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach, detach
from llm_adapters.adapters.method import Method, method
from tiny import Letters, gap, logits, randomise, small, tiny_model, token_ids

peft = pytest.importorskip("peft")

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def pair(family: str, recipe: Method, config: Any) -> tuple[nn.Module, Adapter, Any]:
    """Our attached model with random parameters, and peft's on a copy of the same base."""
    model = tiny_model(family)
    adapter = randomise(attach(model, recipe, "a"))
    theirs = peft.get_peft_model(tiny_model(family), config).eval()
    return model, adapter, theirs


def assert_same(model: nn.Module, theirs: Any, virtual_tokens: int = 0) -> None:
    """Same logits, and the same greedy continuation."""
    ids = token_ids(2, 7)
    expected = logits(theirs, ids)[:, virtual_tokens:]
    bare = logits(tiny_model(model.config.model_type), ids)
    assert gap(expected, bare) > 1e-2
    assert gap(logits(model, ids), expected) < 1e-5
    ours = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    peers = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert torch.equal(ours, peers)


# -- peft -------------------------------------------------------------------------------------------

LORA_TARGETS = {
    "llama": (["q_proj", "v_proj", "down_proj"], ["attn.q", "attn.v", "ffn.down"]),
    "gpt2": (["c_attn", "c_fc"], ["attn.qkv", "ffn.up"]),
    "bloom": (["query_key_value", "dense"], ["attn.qkv", "attn.o"]),
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", LORA_TARGETS)
def test_lora_is_peft_lora(family: str, rslora: bool) -> None:
    targets, sites = LORA_TARGETS[family]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules=targets,
        use_rslora=rslora,
        fan_in_fan_out=family == "gpt2",
    )
    recipe = method("lora", rank=4, alpha=6, rslora=rslora, sites=sites)
    model, adapter, theirs = pair(family, recipe, config)
    modules = dict(theirs.base_model.model.named_modules())
    assert len(list(adapter.placed())) == sum(
        type(m).__module__.startswith("peft.tuners.lora") for m in modules.values()
    )
    with torch.no_grad():
        for placed in adapter.placed():
            peer = modules[placed.site.path]
            peer.lora_A["default"].weight.copy_(placed.form.A)
            peer.lora_B["default"].weight.copy_(placed.form.B)
    assert_same(model, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_prefix_is_peft_prefix_tuning(family: str) -> None:
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model, adapter, theirs = pair(family, method("prefix", tokens=4), config)
    prefix = adapter.prefix
    flat = [table[str(layer)].flatten(1) for layer in range(2) for table in (prefix.keys, prefix.values)]
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(flat, 1))
    assert_same(model, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_reparametrized_prefix_is_peft_prefix_projection(family: str) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6
    )
    model, adapter, theirs = pair(family, method("prefix", tokens=4, reparametrization=6, init="random"), config)
    prefix, peer = adapter.prefix, theirs.prompt_encoder["default"]
    width = peer.embedding.weight.shape[1]  # as wide as the keys of one layer, where ours has the model's width
    with torch.no_grad():
        prefix.table[:, width:] = 0
        peer.embedding.weight.copy_(prefix.table[:, :width])
        peer.transform[0].weight.copy_(prefix.mlp[0].weight[:, :width])
        peer.transform[0].bias.copy_(prefix.mlp[0].bias)
        peer.transform[2].load_state_dict(prefix.mlp[2].state_dict())
    assert_same(model, theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_prompt_is_peft_prompt_tuning(family: str) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model, adapter, theirs = pair(family, method("prompt", tokens=4), config)
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(adapter.prompt.table)
    assert_same(model, theirs, virtual_tokens=4)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_p_tuning_is_peft_prompt_encoder(family: str, encoder: str) -> None:
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
        encoder_dropout=0.0,
    )
    model, adapter, theirs = pair(family, method("p_tuning", tokens=4, encoder=encoder, hidden=6), config)
    ours, peer = adapter.p_tuning, theirs.prompt_encoder["default"]
    with torch.no_grad():
        peer.embedding.weight.copy_(ours.table)
    peer.mlp_head.load_state_dict(ours.mlp.state_dict())
    if encoder == "lstm":
        peer.lstm_head.load_state_dict(ours.lstm.state_dict())
    assert_same(model, theirs, virtual_tokens=4)


# -- formulas ---------------------------------------------------------------------------------------

Map = Callable[[Tensor], Tensor]


def bottleneck(state: dict[str, Tensor], key: str, f: Map, s: float = 1.0) -> Map:
    """``x → s · (f(x Wdown + b) Wup + b)``, written out."""
    down, up = state[f"{key}.down"], state[f"{key}.up"]
    b, c = state.get(f"{key}.down_bias", 0.0), state.get(f"{key}.up_bias", 0.0)
    return lambda x: s * (f(x @ down.T + b) @ up.T + c)


def after(module: nn.Module, g: Map) -> None:
    """Ho ← Ho + g(Ho)."""
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        return (out[0] + g(out[0]), *out[1:]) if isinstance(out, tuple) else out + g(out)

    module.forward = forward


def beside(module: nn.Module, g: Map) -> None:
    """Ho ← Ho + g(Hi)."""
    plain = module.forward
    module.forward = lambda x, *args: plain(x, *args) + g(x)


def before(module: nn.Module, g: Map) -> None:
    """Hi ← Hi + g(Hi)."""
    plain = module.forward
    module.forward = lambda x, *args: plain(x + g(x), *args)


Patch = Callable[[nn.Module, Callable[..., Map]], None]


def relay(first: nn.Module, last: nn.Module, g: Map) -> None:
    """Ho ← Ho + g(Hi) where Hi enters ``first`` and Ho leaves ``last``."""
    kept, plain_first, plain_last = [], first.forward, last.forward

    def entering(x: Tensor) -> Tensor:
        kept.append(x)
        return plain_first(x)

    first.forward = entering
    last.forward = lambda y: plain_last(y) + g(kept.pop())


# family → the decoder layers, and for each method how a layer changes; m(site, …) is the map at a site.
LAYERS: dict[str, Callable[[nn.Module], nn.ModuleList]] = {
    "llama": lambda model: model.model.layers,
    "bloom": lambda model: model.transformer.h,
    "gptj": lambda model: model.transformer.h,
    "opt": lambda model: model.model.decoder.layers,
}


def llama_series_input(layer: nn.Module, m: Callable[..., Map]) -> None:
    before(layer.mlp.up_proj, m("ffn_up", torch.tanh))
    before(layer.mlp.gate_proj, m("ffn_gate", torch.tanh))


def llama_parallel(layer: nn.Module, m: Callable[..., Map]) -> None:
    beside(layer.mlp.up_proj, m("ffn_up", torch.tanh))
    beside(layer.mlp.down_proj, m("ffn_down", torch.tanh))


def llama_houlsby(layer: nn.Module, m: Callable[..., Map]) -> None:
    after(layer.self_attn, m("attn", F.gelu))
    after(layer.mlp, m("ffn", F.gelu))


def bloom_houlsby(layer: nn.Module, m: Callable[..., Map]) -> None:
    # BLOOM's sublayers add the residual by themselves; the adapter stands before that.
    after(layer.self_attention.dense, m("attn", F.gelu))
    after(layer.mlp.dense_4h_to_h, m("ffn", F.gelu))


def bloom_parallel(layer: nn.Module, m: Callable[..., Map]) -> None:
    beside(layer.mlp.dense_h_to_4h, m("ffn_up", torch.tanh))
    beside(layer.mlp.dense_4h_to_h, m("ffn_down", torch.tanh))


def gptj_houlsby(layer: nn.Module, m: Callable[..., Map]) -> None:
    after(layer.attn, m("attn", F.gelu))
    after(layer.mlp, m("ffn", F.gelu))


def gptj_parallel(layer: nn.Module, m: Callable[..., Map]) -> None:
    beside(layer.mlp.fc_in, m("ffn_up", torch.tanh))
    beside(layer.mlp.fc_out, m("ffn_down", torch.tanh))


def opt_houlsby(layer: nn.Module, m: Callable[..., Map]) -> None:
    after(layer.self_attn, m("attn", F.gelu))
    after(layer.fc2, m("ffn", F.gelu))


FORMULAS: dict[tuple[str, str], Patch] = {
    ("llama", "series"): lambda layer, m: after(layer.mlp, m("ffn", torch.tanh)),
    ("llama", "pfeiffer"): lambda layer, m: after(layer.mlp, m("ffn", F.relu)),
    ("llama", "scaled_parallel"): lambda layer, m: beside(layer.mlp, m("ffn", F.relu, 4.0)),
    ("llama", "series_input"): llama_series_input,
    ("llama", "parallel"): llama_parallel,
    ("llama", "houlsby"): llama_houlsby,
    ("bloom", "series"): lambda layer, m: after(layer.mlp.dense_4h_to_h, m("ffn", torch.tanh)),
    ("bloom", "scaled_parallel"): lambda layer, m: beside(layer.mlp, m("ffn", F.relu, 4.0)),
    ("bloom", "series_input"): lambda layer, m: before(layer.mlp.dense_h_to_4h, m("ffn_up", torch.tanh)),
    ("bloom", "parallel"): bloom_parallel,
    ("bloom", "houlsby"): bloom_houlsby,
    ("gptj", "series"): lambda layer, m: after(layer.mlp, m("ffn", torch.tanh)),
    ("gptj", "scaled_parallel"): lambda layer, m: beside(layer.mlp, m("ffn", F.relu, 4.0)),
    ("gptj", "series_input"): lambda layer, m: before(layer.mlp.fc_in, m("ffn_up", torch.tanh)),
    ("gptj", "parallel"): gptj_parallel,
    ("gptj", "houlsby"): gptj_houlsby,
    ("opt", "series"): lambda layer, m: after(layer.fc2, m("ffn", torch.tanh)),
    ("opt", "scaled_parallel"): lambda layer, m: relay(layer.fc1, layer.fc2, m("ffn", F.relu, 4.0)),
    ("opt", "houlsby"): opt_houlsby,
}


@pytest.mark.parametrize(("family", "name"), FORMULAS)
def test_bottlenecks_are_their_formulas(family: str, name: str) -> None:
    model, ids = tiny_model(family), token_ids(2, 7)
    adapter = randomise(attach(model, small(name), "a"))
    state, used = dict(adapter.state_dict()), set()
    patched = tiny_model(family)
    for i, layer in enumerate(LAYERS[family](patched)):

        def at(site: str, f: Map, s: float = 1.0, i: int = i) -> Map:
            used.add(f"{name}.{i}.{site}")
            return bottleneck(state, f"{name}.{i}.{site}", f, s)

        FORMULAS[family, name](layer, at)
    assert used == {key.rpartition(".")[0] for key in state}  # no parameter is left out of the formula
    expected = logits(patched, ids)
    assert gap(expected, logits(tiny_model(family), ids)) > 1e-2
    assert gap(logits(model, ids), expected) < 1e-5


@pytest.mark.parametrize("norm", ["before", "after", "both"])
def test_norms_and_learned_scale_are_their_formula(norm: str) -> None:
    model, ids = tiny_model("llama"), token_ids(2, 7)
    adapter = randomise(attach(model, small("scaled_parallel", norm=norm, learned_scale=True, bias=True), "a"))
    patched = tiny_model("llama")
    for i, layer in enumerate(patched.model.layers):
        state = {k.rpartition("ffn.")[2]: v for k, v in adapter.state_dict().items() if f".{i}." in k}

        def g(x: Tensor, p: dict[str, Tensor] = state) -> Tensor:
            if norm in ("before", "both"):
                x = F.layer_norm(x, (32,), p["norm_before.weight"], p["norm_before.bias"])
            y = F.relu(x @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"]
            if norm in ("after", "both"):
                y = F.layer_norm(y, (32,), p["norm_after.weight"], p["norm_after.bias"])
            return p["scale"] * y

        beside(layer.mlp, g)
    assert gap(logits(model, ids), logits(patched, ids)) < 1e-5


# -- text -------------------------------------------------------------------------------------------

TEXT_FAMILIES = ["llama", "gpt2", "bloom", "gptj", "qwen3", "gemma3_text", "opt", "mpt"]


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_virtual_tokens_from_text_are_the_text(family: str, name: str) -> None:
    model, ids, text = tiny_model(family), token_ids(2, 6), "solve"
    bare = logits(model, ids)
    real = torch.tensor(Letters()(text)["input_ids"]).expand(2, -1)
    expected = logits(model, torch.cat([real, ids], 1))
    adapter = attach(model, method(name, init="text", init_text=text, tokens=5), "a", tokenizer=Letters())
    assert gap(logits(model, ids), expected[:, 5:]) < 1e-5
    assert gap(expected[:, 5:], bare) > 1e-2
    detach(model)
    longer = attach(model, method(name, init="text", init_text=text, tokens=7), "a", tokenizer=Letters())
    repeated = torch.cat([real, real[:, :2]], 1)  # a shorter text is repeated
    assert gap(logits(model, ids), logits(tiny_model(family), torch.cat([repeated, ids], 1))[:, 7:]) < 1e-5
    assert adapter.virtual_tokens == 5
    assert longer.virtual_tokens == 7


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_text_is_read_by_the_bare_base(name: str) -> None:
    recipe = method(name, init="text", init_text="solve", tokens=5)
    alone = attach(tiny_model("llama"), recipe, "a", tokenizer=Letters()).state_dict()
    model = tiny_model("llama")
    randomise(attach(model, small("series", sites=["embed", "ffn"]), "other"))
    beside_other = attach(model, recipe, "a", tokenizer=Letters()).state_dict()
    assert all(torch.equal(beside_other[key], value) for key, value in alone.items())
