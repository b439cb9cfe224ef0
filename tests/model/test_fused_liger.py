"""Liger's kernels stand in for a model's own maps: on a GPU as they are, on a processor in Triton's interpreter.

The interpreter multiplies no bfloat16, takes no plain numbers and knows no function of CUDA's own library.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_adapters.model import fused_liger
from llm_adapters.model.fused import Fused, has_kernels
from tiny import enable_checkpointing, put_on, small, tiny_model, token_ids

if find_spec("liger_kernel") is None:
    pytest.skip("without the extra [liger]", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")
MAPS = ("norm", "rotary", "gated")
METHODS = ["lora", "series", "series_input", "parallel", "scaled_parallel", "houlsby", "pfeiffer", "prefix", "prompt"]


@pytest.fixture(autouse=True)
def _kernels_of_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger's kernels wherever fused maps are wanted."""
    monkeypatch.setattr(fused_liger, "DEVICE", DEVICE)
    if DEVICE == "cpu":
        convert = interpreter._implicit_cvt

        def converted(value: Any) -> Any:  # as a device takes them
            if isinstance(value, float):
                handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
                return tl.core.tensor(handle, tl.float32)
            return None if value is None else convert(value)

        monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
        monkeypatch.setattr(importlib.import_module("liger_kernel.ops.rms_norm"), "rsqrt", _rsqrt)
    monkeypatch.setattr(fused_liger, "_tried", {})


def _rsqrt(x: Any) -> Any:
    return tl.math.rsqrt(x)  # looked up when it is called: the interpreter puts its own there then


def _loss_and_gradients(model: Any, ids: Tensor, weights: list[Tensor]) -> list[Tensor]:
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_an_adapter_gets_the_gradients_of_the_models_own_maps(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare(tiny_model(family), method, monkeypatch)


def test_it_does_so_where_activations_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    enable_checkpointing(model)
    _compare(model, "series", monkeypatch)


def _compare(model: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model.to(DEVICE).requires_grad_(False)
    weights = list(put_on(model, small(method), "a").parameters())
    ids = token_ids(2, 11).to(DEVICE)
    expected = _loss_and_gradients(model, ids, weights)
    fused = Fused(model)
    used: list[str] = []
    for name in MAPS:
        monkeypatch.setattr(fused_liger, name, _counted(name, getattr(fused_liger, name), used))
    with fused():
        found = _loss_and_gradients(model, ids, weights)
    assert set(MAPS) - ({"gated"} if model.config.model_type == "gemma" else set()) == set(used)
    for here, there in zip(found, expected, strict=True):
        assert float((here - there).abs().max()) <= 1e-5 * float(there.abs().max())


def _counted(name: str, function: Any, used: list[str]) -> Any:
    def counting(*given: Any) -> Any:
        used.append(name)
        return function(*given)

    return counting


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])])
def test_they_are_tried_before_they_are_trusted(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device(DEVICE)
    assert has_kernels(here)
    assert not fused_liger.works_on(here, dtype)  # not known yet
    fused_liger.try_on([(here, dtype), (torch.device("meta"), dtype)])
    assert fused_liger.works_on(here, dtype)
    assert not fused_liger.works_on(torch.device("meta"), dtype)
    monkeypatch.setattr(fused_liger, "_tried", {})
    gated = fused_liger.gated
    monkeypatch.setattr(fused_liger, "gated", lambda gate, up: gated(gate, up) * 1.1)
    with pytest.warns(UserWarning, match="installed and not used"):
        fused_liger.try_on([(here, dtype)])
    assert not fused_liger.works_on(here, dtype)
