"""Fused maps compute what the model's own do, forward and backward, and leave nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from llm_adapters.model import fused as module_under_test
from llm_adapters.model import fused_plain
from llm_adapters.model.fused import Fused
from tiny import ALL_FAMILIES, VOCABULARY, tiny_model

NORMS = {"llama": 5, "qwen3": 9, "gemma": 5, "gemma3_text": 13, "olmo": 0, "bloom": 0, "phi3": 5}
GATED = {"llama": 2, "qwen3": 2, "gemma": 0, "gemma3_text": 0, "olmo": 2, "bloom": 0, "phi3": 0}
ROTARY = {"llama", "qwen3", "gemma", "gemma3_text", "olmo", "phi3"}


def _run(model: Any, embeddings: Tensor) -> list[Tensor]:
    states = embeddings.clone().requires_grad_()
    logits = model(inputs_embeds=states, use_cache=False).logits
    outer = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    logits.backward(outer)
    assert states.grad is not None
    return [logits.detach(), states.grad]


def _randomised(family: str) -> tuple[Any, Tensor]:
    model: Any = tiny_model(family).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # which start at one or at zero
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(3, VOCABULARY, (2, 11), generator=generator)
    return model, model.get_input_embeddings()(ids)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_computes_the_same(family: str) -> None:
    model, embeddings = _randomised(family)
    try:
        expected = _run(model, embeddings)
    except (TypeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"takes no embeddings here: {error}")
    with Fused(model)():
        found = _run(model, embeddings)
    for here, there in zip(found, expected, strict=True):
        assert float((here - there).abs().max()) <= 1e-5 * float(there.abs().max())


@pytest.mark.parametrize("family", list(NORMS))
def test_what_is_recognised(family: str) -> None:
    model = tiny_model(family)
    fused = Fused(model)
    own = [module for module, _ in fused._forwards]
    assert sum("Norm" in type(module).__name__ for module in own) == NORMS[family]
    assert sum("MLP" in type(module).__name__ for module in own) == GATED[family]
    assert len(fused._rotations) == (family in ROTARY)


def test_it_is_their_place_that_is_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, embeddings = _randomised("llama")
    theirs = modeling_llama.apply_rotary_pos_emb
    calls: list[str] = []
    monkeypatch.setattr(torch.nn.functional, "silu", _counted(torch.nn.functional.silu, calls))
    monkeypatch.setattr(fused_plain, "turned", _counted(fused_plain.turned, calls))
    fused = Fused(model)
    calls.clear()
    silenced: list[Tensor] = []

    def fail() -> None:
        with fused():
            assert modeling_llama.apply_rotary_pos_emb is not theirs
            model.model.layers[0].input_layernorm.register_forward_hook(lambda _m, _i, output: output * 0)
            silenced.extend(_run(model, embeddings))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert calls.count("turned") == 8  # queries and keys of two layers, forth and back
    assert calls.count("silu") == 4
    assert modeling_llama.apply_rotary_pos_emb is theirs
    assert not any("forward" in vars(module) for module in model.modules())
    for here, there in zip(_run(model, embeddings), silenced, strict=True):  # hooks were in force
        assert float((here - there).abs().max()) <= 1e-5 * float(there.abs().max())


def _counted(function: Any, calls: list[str]) -> Any:
    def counting(*args: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **options)

    return counting


class _Norm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * 1.001


class _NormOfTheRoot(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        root = hidden_states.square().mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (root + self.variance_epsilon)


class _NormWithFloor(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.square().mean(-1, keepdim=True).clamp(min=self.variance_epsilon)
        return self.weight * hidden_states * variance.rsqrt()


class _NormWithGate(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        states = super().forward(hidden_states)
        return states if gate is None else states * gate


class _NormThatAsks(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        assert hidden_states.shape[-1] == 32
        return super().forward(hidden_states)


class _Gate(modeling_llama.LlamaMLP):
    limit: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        gate = self.act_fn(self.gate_proj(x))
        if self.limit is not None:
            gate = gate.clamp(max=self.limit)
        return self.down_proj(gate * self.up_proj(x))


class _GateThatDrops(modeling_llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().forward(x), 0.1, self.training)


def test_what_it_does_not_know_is_left_alone() -> None:
    config = tiny_model("llama").config
    limited = _Gate(config)
    limited.limit = 16.0  # which no small state reaches
    others = [
        _Norm(8),
        _NormOfTheRoot(8),
        _NormWithFloor(8),
        _NormWithGate(8),
        _NormThatAsks(8),
        limited,
        _GateThatDrops(config),
        nn.LayerNorm(8),
    ]
    known = [modeling_llama.LlamaRMSNorm(8), _Gate(config)]  # of one class with another: each is tried
    found = [module for module, _ in Fused(nn.ModuleList([*others, *known]).eval())._forwards]
    assert found == known


def test_a_scripted_module_is_left_alone() -> None:
    net = nn.ModuleList([torch.jit.script(nn.Linear(4, 4)), modeling_llama.LlamaRMSNorm(8)])
    assert [module for module, _ in Fused(net)._forwards] == [net[1]]


def test_states_by_name_and_hooks_on_what_is_passed_over_go_the_models_way() -> None:
    norm = modeling_llama.LlamaRMSNorm(8).requires_grad_(False)
    gate = _Gate(tiny_model("llama").config).requires_grad_(False)
    states, wide = torch.randn(3, 8, requires_grad=True), torch.randn(3, 32, requires_grad=True)
    expected = norm(states)
    with Fused(nn.ModuleList([norm, gate]))():
        torch.testing.assert_close(norm(hidden_states=states), expected)
        assert bool(gate(wide).any())
        gate.act_fn.register_forward_hook(lambda _module, _inputs, output: output * 0)
        assert not bool(gate(wide).any())


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_that_overlap_leave_the_models_own(first_out: int) -> None:
    theirs = modeling_llama.apply_rotary_pos_emb
    one, other = (Fused(tiny_model("llama"))() for _ in range(2))
    one.__enter__()
    other.__enter__()
    for each in (one, other)[:: 1 if first_out == 0 else -1]:
        each.__exit__(None, None, None)
    assert modeling_llama.apply_rotary_pos_emb is theirs


@pytest.mark.parametrize("family", ["seed_oss", "glm4_moe", "phi3"])
def test_a_training_draws_what_it_draws_without(family: str) -> None:
    model, embeddings = _randomised(family)
    fused = Fused(model)  # in evaluation, as it is when a training is prepared
    model.train()
    torch.manual_seed(0)
    expected = _run(model, embeddings)
    torch.manual_seed(0)
    with fused():
        found = _run(model, embeddings)
    for here, there in zip(found, expected, strict=True):
        assert float((here - there).abs().max()) <= 1e-5 * float(there.abs().max())


def test_states_are_rounded_alike_whether_or_not_something_below_them_is_trained() -> None:
    """A member of a cohort sees the first layer as its run alone does, where nothing below asks for a gradient."""
    model, embeddings = _randomised("llama")
    with Fused(model)():
        asked, unasked = (
            model(inputs_embeds=embeddings.clone().requires_grad_(needed), use_cache=False).logits.detach()
            for needed in (True, False)
        )
    torch.testing.assert_close(asked, unasked, rtol=0, atol=0)


@pytest.mark.parametrize("given", [(), ("cos",), ("mixed",), ("keyword",), ("part",)])
def test_a_rotation_of_another_kind_is_theirs(given: tuple[str, ...]) -> None:
    calls: list[str] = []
    theirs = _counted(modeling_llama.apply_rotary_pos_emb, calls)
    q, k = torch.randn(1, 4, 5, 8, requires_grad=True), torch.randn(1, 2, 5, 8, requires_grad=True)
    cos, sin = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    if "cos" in given:
        cos.requires_grad_()
    if "mixed" in given:
        q, k = q.bfloat16(), k.bfloat16()
    named = {"unsqueeze_dim": 1} if "keyword" in given else {}
    if "part" in given:
        k = k[:, :, :1]
    expected = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    found = module_under_test._rotary(theirs, q, k, cos, sin, **named)
    assert len(calls) == len(given)
    for here, there in zip(found, expected, strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["norm", "gate"])
def test_without_gradient_and_trained_the_model_computes_by_itself(trained: bool, kind: str) -> None:
    torch.manual_seed(0)
    net: Any = modeling_llama.LlamaRMSNorm(32) if kind == "norm" else _Gate(tiny_model("llama").config)
    net.requires_grad_(trained)
    states = torch.randn(3, 32, requires_grad=trained and kind == "norm")
    plain = copy.deepcopy(net)
    with Fused(net)(), torch.set_grad_enabled(trained):
        torch.testing.assert_close(net(states), plain(states), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo", "phi3"])  # Gemma's norms are its own in half precision
def test_in_half_precision_it_is_as_near_to_exact_numbers_as_the_model_itself(family: str, dtype: torch.dtype) -> None:
    """On the mean of some inputs: of a single one either may round the luckier way."""
    model, _ = _randomised(family)
    half = model.to(dtype)
    exact = copy.deepcopy(half).double()
    fused = Fused(half)
    assert fused._forwards
    away = torch.zeros(2, 2)
    for _ in range(6):
        embeddings = half.get_input_embeddings()(torch.randint(3, VOCABULARY, (2, 11))).detach()
        wanted, own = _run(exact, embeddings.double()), _run(half, embeddings)
        with fused():
            found = _run(half, embeddings)
        for side, results in enumerate((found, own)):
            away[side] += torch.tensor([float((a - b).norm()) for a, b in zip(results, wanted, strict=True)])
    assert (away[0] <= 1.05 * away[1]).all()
