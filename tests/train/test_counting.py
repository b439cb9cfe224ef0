"""What is counted without numbers is what a real forward and backward pass holds."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import llm_adapters as la
from llm_adapters.data.encoding import Encoded
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.train.batches import Batches
from llm_adapters.train.counting import Ledger, count
from llm_adapters.train.loss import summed_loss
from llm_adapters.train.operations import Operations
from llm_adapters.train.workload import Extent
from tiny import small, tiny_config, tiny_model
from tiny_training import examples

CPU = torch.device("cpu")


def _empty(family: str, method: str) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family)).train()
    with WithoutNumbers():
        la.attach(model, small(method), "a")
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["lora", "series", "parallel", "prefix"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gptj", "bloom", "gemma2", "gpt2", "mixtral"])
def test_bytes_are_those_of_a_real_pass(family: str, method: str, packed: bool) -> None:
    model = tiny_model(family).train()
    la.attach(model, small(method), "a")
    batches = Batches(model, pad_id=0, device=CPU, packed=packed)
    ledger = Ledger([*model.parameters(), *model.buffers()])
    with ledger, batches.in_force():
        loss = summed_loss(model, batches.tensors(examples(6)), batches.head)
        saved = ledger.now
        loss.backward()
    empty = _empty(family, method)
    counted = count(empty, Batches(empty, pad_id=0, device=CPU, packed=batches.packed), examples(6))
    assert counted.saved_bytes == pytest.approx(saved, rel=0.06)
    assert counted.peak_bytes == pytest.approx(ledger.peak, rel=0.06)


def test_operations_of_one_linear_adapter_are_those_of_the_formula() -> None:
    """Without attention's own: 2 a weight and token forward, 2 backward above the lowest adapter, 6 the adapter's."""
    model = _empty("llama", "lora")
    counted = Operations.of(model, Batches(model, pad_id=0, device=CPU))
    linears = sum(p.numel() for key, p in model.model.layers.named_parameters() if p.dim() == 2)
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.forward[1] == pytest.approx(2 * (linears + adapter), rel=1e-3)  # beside it the rotary angles
    # Nothing stands below the adapters of the first layer's q, k and v, so their maps pass no gradient on.
    first = model.model.layers[0].self_attn
    below = sum(getattr(first, name).weight.numel() for name in ("q_proj", "k_proj", "v_proj"))
    ranks = 3 * 3 * 32  # A of these three
    assert counted.training[1] == pytest.approx(4 * linears - 2 * below + 6 * adapter - 2 * ranks, rel=1e-3)
    assert counted.training[3] == pytest.approx(4 * 32 * 97)


def test_checkpointing_saves_what_it_should() -> None:
    model = _empty("llama", "lora")
    batches = Batches(model, pad_id=0, device=CPU)
    rows = [Encoded([5] * 64, [5] * 64, truncated=False)]
    plain = count(model, batches, rows)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = count(model, batches, rows)
    assert kept.saved_bytes < plain.saved_bytes / 2
    assert kept.operations > plain.operations


def test_frozen_layers_below_the_lowest_adapter_save_nothing() -> None:
    model = _empty("llama", "lora")
    la.detach(model, "a")
    la.attach(model, small("lora", layers="last:1"), "b")
    everywhere = _empty("llama", "lora")
    rows = [Encoded([5] * 64, [5] * 64, truncated=False)]
    low, high = (count(each, Batches(each, pad_id=0, device=CPU), rows) for each in (everywhere, model))
    assert high.saved_bytes < 0.7 * low.saved_bytes


def test_extents() -> None:
    rows = [Encoded([1] * n, [-100] * (n - 2) + [1] * 2, truncated=False) for n in (4, 6)]
    assert Extent.of(rows, packed=True) == Extent(10, 52, 4)
    assert Extent.of(rows, packed=False) == Extent(12, 72, 8)
