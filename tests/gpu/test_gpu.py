"""What only a GPU computes: kernels of its own, random numbers of its own, memory that runs out."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llm_adapters as la
from llm_adapters.adapters.attach import attached
from llm_adapters.adapters.forms import LowRank
from llm_adapters.adapters.forms.dropout import dropped
from llm_adapters.adapters.method import methods
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.errors import Stopped
from llm_adapters.model import flash_kernel
from llm_adapters.model.loading import load_model
from llm_adapters.model.quantised_linears import dequantised, is_quantised
from llm_adapters.model.quantization import KINDS
from llm_adapters.model.recomputed import recomputing
from llm_adapters.train import Stop, TrainResult, train
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from tiny import gap, put_on, small, tiny_model
from tiny_cohort import alone, eight, together
from tiny_quantised import needs, quantised_folder
from tiny_training import checkpoints, examples, metrics, same, summed_gradients, tiny_training

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

GPU = torch.device("cuda", 0)
HALF = torch.bfloat16


def _on_gpu(dtype: torch.dtype = torch.float32, family: str = "llama", **overrides: Any) -> Any:
    return tiny_model(family, **overrides).to(GPU, dtype)


def _gradients(model: Any, adapter: Any, rows: list[Encoded], **options: Any) -> tuple[float, Tensor]:
    return summed_gradients(model, adapter, rows, device="cuda:0", **options)


def _far(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", list(methods()))
def test_packed_is_unpacked(name: str) -> None:
    model = _on_gpu()
    adapter = put_on(model, small(name), "a")
    loss, gradient = _gradients(model, adapter, examples(9), packed=False, size=1)
    packed, other = _gradients(model, adapter, examples(9), packed=True, size=4)
    assert packed == pytest.approx(loss, rel=1e-5)
    assert _far(other, gradient) < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("name", ["lora", "series", "prefix", "prompt", "p_tuning"])
def test_one_kernel_for_all_documents_gives_what_each_alone_gives(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32 as the model in half precision is by itself."""
    rows = examples(9)
    exact, halves = (_on_gpu(dtype, family) for dtype in (torch.float32, HALF))
    _, wanted = _gradients(exact, put_on(exact, small(name), "a"), rows, packed=False, size=1)
    adapter = put_on(halves, small(name), "a")
    _, apart = _gradients(halves, adapter, rows, packed=False, size=1)
    calls: list[bool] = []
    forward = flash_kernel.forward
    monkeypatch.setattr(flash_kernel, "forward", lambda *given, **named: calls.append(True) or forward(*given, **named))
    _, packed = _gradients(halves, adapter, rows, packed=True, size=4, ready=calls.clear)
    assert calls
    assert _far(packed, wanted) < 1.3 * _far(apart, wanted) + 1e-3


def test_a_window_shorter_than_the_documents() -> None:
    model = _on_gpu(HALF, "gemma3_text")
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4
    model.config.sliding_window = 4
    for name in ("lora", "prefix"):
        adapter = put_on(model, small(name), name)
        loss, gradient = _gradients(model, adapter, examples(5), packed=False, size=1)
        packed, other = _gradients(model, adapter, examples(5), packed=True, size=5)
        assert packed == pytest.approx(loss, rel=1e-2)
        assert _far(other, gradient) < 0.05
        la.detach(model, name)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_a_shared_beginning_gives_what_each_example_alone_gives(dtype: torch.dtype) -> None:
    model = _on_gpu(dtype)
    adapter = put_on(model, small("lora"), "a")
    rows = examples(8, beginning=9)
    loss, gradient = _gradients(model, adapter, rows, packed=True, size=8)
    shared, other = _gradients(model, adapter, rows, packed=True, size=8, sharing=True)
    assert shared == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert _far(other, gradient) < (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_dropout_is_the_formula_with_its_mask_written_out(dtype: torch.dtype) -> None:
    form = LowRank(64, 48, 4, scale=2.0, dropout=0.3).to(GPU)
    nn.init.normal_(form.B)
    x = torch.randn(5, 70, 64, device=GPU, dtype=dtype, requires_grad=True)
    torch.manual_seed(7)
    mask = dropped(torch.ones(5, 70, 64, device=GPU), 0.3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(0.7, abs=0.02)
    torch.manual_seed(7)
    with recomputing():
        found = form.update(x)
        here = torch.autograd.grad(found.float().sum(), [x, form.A, form.B])
    wanted = 2.0 / 0.7 * ((x.float() * mask) @ form.A.t() @ form.B.t())
    there = torch.autograd.grad(wanted.sum(), [x, form.A, form.B])
    for one, other in zip([found, *here], [wanted, *there], strict=True):
        assert _far(one.float(), other.float()) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("name", ["lora", "series", "prefix"])
def test_the_same_seed_gives_the_same_bits_stopped_or_not(name: str, tmp_path: Path) -> None:
    recipe = small(name, dropout=0.1) if name != "prefix" else small(name)
    options: dict[str, Any] = {"recipe": recipe, "beginning": 6, "count": 40, "epochs": 3, "checkpoint_every": 2}

    def trained(folder: str, **more: Any) -> Any:
        return tiny_training(tmp_path / folder, model=_on_gpu(HALF, hidden_size=64, head_dim=16), **options, **more)

    _, first = trained("first")
    _, second = trained("second")

    def interrupt(row: dict[str, float]) -> None:
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with Stop() as stop, pytest.raises(Stopped):
        trained("stopped", stop=stop, on_step=interrupt)
    _, third = trained("stopped")
    assert same(first, second)
    assert same(first, third)
    assert metrics(tmp_path / "first") == metrics(tmp_path / "stopped")
    assert same(checkpoints(tmp_path / "first"), checkpoints(tmp_path / "stopped"))


def test_the_cohort_of_eight_is_eight_trainings(tmp_path: Path) -> None:
    outcomes, states = together(eight(), tmp_path / "cohort", model=_on_gpu())
    for recipe, outcome, state in zip(eight(), outcomes, states, strict=True):
        assert isinstance(outcome, TrainResult)
        _, own = alone(recipe, tmp_path / "alone", model=_on_gpu())
        found, wanted = (metrics(tmp_path / side / recipe.name) for side in ("cohort", "alone"))
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-5)
        assert max(gap(state[key], own[key]) for key in own) < 1e-3, recipe.name


def test_memory_that_runs_out_makes_the_micro_batch_smaller(tmp_path: Path) -> None:
    model = _on_gpu(hidden_size=512, intermediate_size=8192, num_hidden_layers=4)
    ids = [[3 + (start + i) % 90 for i in range(500)] for start in range(64)]  # no two begin alike
    rows = [Encoded(row, [IGNORED] * 400 + row[400:], truncated=False) for row in ids]
    adapter = la.attach(model, la.method("lora", rank=4), "a")
    batches = Batches(model, pad_id=0, device=GPU)
    model.train()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with batches.in_force():
        summed_loss(model, batches.tensors(rows[:16]), batches.head).backward()
    enough = torch.cuda.max_memory_reserved() * 1.3
    la.detach(model, "a")
    del adapter
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.mem_get_info()[1])
    notes: list[str] = []
    try:
        adapter = la.attach(model, la.method("lora", rank=4), "a")
        settings = TrainSection.parse({"batch_size": 64, "steps": 2, "warmup": 0}, where="test")
        result = train(
            model, adapter, rows, settings, learning_rate=1e-3, pad_id=0, seed=0, folder=tmp_path, on_note=notes.append
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.micro_batch in (8, 16)
    assert notes[0].startswith("out of memory with 64 rows at a time:")


@pytest.mark.parametrize("name", list(methods()))
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_is_the_one_with_its_weights_dequantised(kind: str, name: str) -> None:
    needs(kind)
    model, _ = load_model(quantised_folder(), quantization=kind, dtype="bfloat16")
    twin, _ = load_model(quantised_folder(), dtype="float32")
    for path, module in model.named_modules():
        if is_quantised(module):
            twin.get_submodule(path).weight.data = dequantised(module, torch.float32)
    rows = examples(4)
    found, gradient = _gradients(model, put_on(model, small(name), "a"), rows, packed=False, size=4)
    wanted, other = _gradients(twin, put_on(twin, small(name), "a"), rows, packed=False, size=4)
    assert found == pytest.approx(wanted, rel=0.05)
    assert _far(gradient, other) < 0.3  # of half precision through relus in tiny layers
    packed, third = _gradients(model, attached(model)["a"], rows, packed=True, size=4)
    assert packed == pytest.approx(found, rel=0.05)
    assert _far(third, gradient) < 0.1
