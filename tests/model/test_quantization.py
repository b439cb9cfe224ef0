"""Quantised loading: what is quantised and what is not, what it weighs, what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.method import method
from llm_adapters.errors import MissingExtraError
from llm_adapters.model import quantization
from llm_adapters.model.loading import empty_model, load_model
from llm_adapters.model.quantised_linears import (
    bytes_as,
    dequantised,
    is_quantised,
    parameter_count,
    quantised_linears,
    quantization_of,
    weight_bytes,
)
from llm_adapters.model.quantization import KINDS
from llm_adapters.model.sites import find_sites
from tiny import IDS, gap, logits, refused, tiny_model
from tiny_folder import tiny_folder
from tiny_quantised import every_kind, needs, quantised, quantised_folder, wide_model


@every_kind
def test_linear_maps_of_the_decoder_are_quantised_and_nothing_else(kind: str) -> None:
    model, full = quantised(kind), wide_model()
    assert quantization_of(model) == kind
    assert not model.training
    linears = {site.path for site in find_sites(full) if site.is_linear}
    assert {name for name, module in model.named_modules() if is_quantised(module)} == linears
    assert len(linears) == 14
    kept = [key for key, _ in full.named_parameters() if key.removesuffix(".weight") not in linears]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(kept)
    assert all(torch.equal(model.get_parameter(key), full.get_parameter(key)) for key in kept)
    ours, theirs = ({site.name: (site.path, site.in_features) for site in find_sites(m)} for m in (model, full))
    assert ours == theirs


@every_kind
def test_it_weighs_what_its_bits_say(kind: str) -> None:
    model, full = quantised(kind), wide_model()
    assert parameter_count(model) == parameter_count(full) == sum(p.numel() for p in full.parameters())
    packed = sum(site.in_features * site.out_features for site in find_sites(full) if site.is_linear)
    assert weight_bytes(full) - 4 * (parameter_count(full)) == sum(b.nbytes for b in full.buffers())
    share = (weight_bytes(model) - (weight_bytes(full) - 4 * packed)) / packed  # bytes a quantised weight
    # Scales: one in 32 bits a row (8 bit); two in 16 bits a block (int4); one in 8 bits a block, and tables (nf4, fp4).
    assert KINDS[kind].bits / 8 < share < KINDS[kind].bits / 8 + 0.25
    foreseen, largest = bytes_as(full, kind)
    assert weight_bytes(model) == pytest.approx(foreseen, abs=14 * 1300)  # and tables of the codes of each map
    assert largest == 4 * max(site.in_features * site.out_features for site in find_sites(full) if site.is_linear)


@every_kind
def test_the_dequantised_weight_is_what_it_computes_with(kind: str) -> None:
    model, full = quantised(kind).train(), wide_model()
    for name, module in model.named_modules():
        if is_quantised(module):
            weight, original = dequantised(module, torch.float32), full.get_submodule(name).weight.detach()
            x = torch.randn(5, original.shape[1])
            assert gap(module(x), x @ weight.T) <= 1e-5
            assert 1e-4 < gap(weight, original) / float(original.abs().max()) < {8: 0.01, 4: 0.2}[KINDS[kind].bits]


class Opaque(nn.Module):
    """A quantised linear map of a library unknown to us: a kernel without a gradient, and no word on its weight."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("qweight", weight.to(torch.int8))
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() @ self.qweight.T.to(x.dtype)) / 7 + self.bias


def test_a_kind_that_does_not_tell_its_weight_is_asked_for_it() -> None:
    weight = torch.randint(-7, 8, (3, 5))
    module = Opaque(weight, torch.randn(3))
    module.register_forward_hook(lambda *_: pytest.fail("hooks have no part in this"))
    assert is_quantised(module)
    assert gap(dequantised(module, torch.float64), weight.double() / 7) < 1e-7
    assert parameter_count(nn.Sequential(module, nn.LayerNorm(3))) == 15 + 3 + 6


def test_plain_linear_maps_are_not_quantised() -> None:
    plain = [nn.Linear(4, 6), nn.Linear(4, 6).bfloat16(), Conv1D(4, 6), nn.Linear(4, 6, device="meta")]
    assert not any(map(is_quantised, [*plain, nn.LayerNorm(4), nn.Embedding(4, 6)]))
    for family in ("gpt2", "mixtral", "deepseek_v3", "bloom"):
        assert quantised_linears(tiny_model(family)) == []
        assert quantization_of(tiny_model(family)) is None


@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-fp4"])
def test_a_pass_without_gradient_repacks_no_weight(kind: str) -> None:
    model = quantised(kind)
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.clone()
    first = logits(model, IDS)
    assert torch.equal(weight, before)
    assert torch.equal(model(IDS).logits, first)  # with gradient


def test_sizes_that_no_block_divides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    needs("bnb-nf4")
    folder = tiny_folder(tmp_path / "small")  # 32 and 48
    for kind in ("bnb-nf4", "bnb-int8"):
        assert logits(load_model(folder, quantization=kind, device="cpu")[0], IDS).isfinite().all()
    quantised("torchao-int4")  # or skip
    refused(folder, "'torchao-int4' quantises none", "bnb-nf4", quantization="torchao-int4", device="cpu")
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 512}
    tiny_model("llama", **sizes).save_pretrained(folder)
    model, _ = load_model(folder, quantization="torchao-int4", device="cpu")
    assert len(quantised_linears(model)) == 12
    assert "2 linear maps stay unquantised: model.layers.0.mlp.down_proj" in caplog.text


@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-int8", "torchao-int8"])
def test_checkpoints_that_are_quantised_already(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "saved")
    model = quantised(kind)
    model.save_pretrained(folder)
    for asked in ("none", kind):
        again, _ = load_model(folder, quantization=asked, device="cpu")
        assert quantization_of(again) == kind
        assert torch.equal(logits(again, IDS), logits(model, IDS))
    other = "bnb-fp4" if kind != "bnb-fp4" else "bnb-nf4"
    refused(folder, f"quantised already ({kind})", f"cannot be made {other}", quantization=other)
    empty = empty_model(folder)  # what `sites` and the checks before a run see
    assert method("lora").count(Base(empty, find_sites(empty))) == method("lora").count(Base(model, find_sites(model)))


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quantised_folder()
    refused(folder, "unknown quantization 'bnb-nf5'", "nearest: bnb-nf4", "torchao-int8", quantization="bnb-nf5")
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    for kind, package in (("bnb-nf4", "bitsandbytes"), ("torchao-int8", "torchao")):
        with pytest.raises(MissingExtraError, match=rf"(?s)'{package}'.*llm-adapters\[quantised\]"):
            load_model("no/such-model", quantization=kind)  # said before anything is looked for


def test_a_checkpoint_whose_library_is_missing(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    config = tiny_model("llama", max_position_embeddings=512).config
    config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    config.save_pretrained(folder)
    assert quantization.stored_quantization(config) == "gptq-4bit"
    if find_spec("gptqmodel") is None:
        refused(folder, "cannot be loaded", "install what a checkpoint in gptq-4bit needs", device="cpu")
