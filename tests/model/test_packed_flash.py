"""One attention for all packed documents gives what each alone gives; the kernel, which needs a GPU, is written out.

With the kernel itself: ``tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from llm_adapters.adapters.method import methods
from llm_adapters.data.encoding import Encoded
from llm_adapters.model import packed_flash
from llm_adapters.model.packed_flash import Layout, layout_of
from llm_adapters.train.batches import Batches
from llm_adapters.train.loss import summed_loss
from tiny import put_on, small, tiny_model
from tiny_training import examples, metrics, tiny_training

CPU = torch.device("cpu")


def _written_out(q: Tensor, k: Tensor, v: Tensor, *, layout: Layout, left: int, scale: float | None) -> Tensor:
    """What torch's kernel computes: causal masks aligned at the end of what a document sees."""
    found = []
    places = zip(
        layout.queries.tolist(),
        layout.queries[1:].tolist(),
        layout.keys.tolist(),
        layout.keys[1:].tolist(),
        strict=False,
    )
    for first, last, start, end in places:
        assert last - first <= layout.longest[0]
        assert end - start <= layout.longest[1]
        own, seen = last - first, end - start
        mask = torch.ones(own, seen, dtype=torch.bool).tril(seen - own)
        mask = mask if left < 0 else mask.triu(seen - own - left)
        groups = q.shape[1] // k.shape[1]
        parts = [q[first:last], *(states[start:end].repeat_interleave(groups, dim=1) for states in (k, v))]
        heads = [states.transpose(0, 1) for states in parts]
        found.append(functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(found)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Layout]]:
    """Tensors on a CPU in float32 go through the kernel written out."""
    seen: list[Layout] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, *, layout: Layout, **options: Any) -> tuple[Tensor, ...]:
        seen.append(layout)
        return _written_out(q, k, v, layout=layout, **options), *(torch.empty(0) for _ in range(3))

    def kernel_backward(
        outer: Tensor, q: Tensor, k: Tensor, v: Tensor, _found: Sequence[Tensor], *, layout: Layout, **options: Any
    ) -> Sequence[Tensor]:
        leaves = [states.detach().requires_grad_() for states in (q, k, v)]
        with torch.enable_grad():
            return torch.autograd.grad(_written_out(*leaves, layout=layout, **options), leaves, outer)

    monkeypatch.setattr(packed_flash, "kernel", kernel)
    monkeypatch.setattr(packed_flash, "kernel_backward", kernel_backward)
    monkeypatch.setitem(packed_flash._tried, (CPU, torch.float32), True)
    yield seen
    layout_of.cache_clear()


def _gradients(model: Any, adapter: Any, rows: list[Encoded], *, packed: bool, size: int, sharing: bool = False) -> Any:
    batches = Batches(model, pad_id=0, device=CPU, packed=packed)
    assert batches.packed == packed
    batches.sharing = sharing
    model.train()
    total = 0.0
    for piece in batches.pieces([len(row.input_ids) for row in rows], size):
        with batches.in_force():
            loss = summed_loss(model, batches.tensors([rows[index] for index in piece]), batches.head)
            loss.backward()
        total += float(loss.detach())
    found = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
    for parameter in adapter.parameters():
        parameter.grad = None
    return total, found


def _expect_equal(model: Any, adapter: Any, rows: list[Encoded], *, sharing: bool = False) -> None:
    alone, expected = _gradients(model, adapter, rows, packed=False, size=1)
    packed, found = _gradients(model, adapter, rows, packed=True, size=4, sharing=sharing)
    assert packed == pytest.approx(alone, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", list(methods()))
def test_packed_is_unpacked(name: str, calls: list[Layout]) -> None:
    model = tiny_model("llama")
    _expect_equal(model, put_on(model, small(name), "a"), examples(9))
    assert any(len(layout.queries) == 4 for layout in calls)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "olmo2", "phi"])
def test_other_families(family: str, calls: list[Layout]) -> None:
    model = tiny_model(family)
    _expect_equal(model, put_on(model, small("lora"), "a"), examples(6))
    assert calls


@pytest.mark.parametrize("name", ["lora", "series"])
def test_a_shared_beginning(name: str, calls: list[Layout]) -> None:
    model = tiny_model("llama")
    _expect_equal(model, put_on(model, small(name), "a"), examples(8, beginning=9), sharing=True)
    assert any(layout.repeated for layout in calls)


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_a_window_shorter_than_the_documents(name: str) -> None:
    model = tiny_model("gemma3_text")
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4
    model.config.sliding_window = 4
    _expect_equal(model, put_on(model, small(name), "a"), examples(5))


def test_rows_of_documents_that_see_virtual_tokens_and_beginnings() -> None:
    """Columns of two rows, two virtual tokens and two documents each: 0 1 | 2 3 4 | 5 6 and 7 8 | 9 10 | 11 12 13."""
    layout = layout_of(2, ((3, 2), (2, 3)), ((0, 1), (0, 0)), (((0, 0), (0, 0)), ((0, 2), (1, 2))), CPU)
    assert layout.seen is not None
    assert layout.seen.tolist() == [2, 3, 4, 2, 5, 6, 7, 8, 9, 10, 8, 11, 12, 13]
    assert layout.queries.tolist() == [0, 3, 5, 7, 10]
    assert layout.keys.tolist() == [0, 3, 6, 10, 14]
    assert layout.longest == (3, 4)
    states = torch.randn(14, 2, 3, requires_grad=True)
    outer = torch.randn(14, 2, 3)
    (expected,) = torch.autograd.grad(states.index_select(0, layout.seen), states, outer)
    torch.testing.assert_close(packed_flash._gathered(outer, states, layout), expected)


def test_documents_that_see_nothing_but_themselves_are_not_gathered() -> None:
    assert layout_of(0, ((3, 2), (4, 1)), ((0, 0), (0, 0)), (((0, 0),) * 2,) * 2, CPU).seen is None


def test_compiled_layers_call_it_and_are_not_compiled_anew_for_other_lengths(
    calls: list[Layout], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.Module.compile
    frames: list[int] = []

    def losses(name: str, **options: Any) -> list[float]:
        counter = CompileCounterWithBackend("eager")
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Module, "compile", lambda self, **given: plain(self, backend=counter, **given))
            model = tiny_model("llama", num_hidden_layers=4)
            tiny_training(tmp_path / name, model=model, recipe=small("lora"), count=16, micro_batch=4, **options)
        frames.append(counter.frame_count)
        return [row["loss"] for row in metrics(tmp_path / name)]

    expected = losses("plain", epochs=1)
    calls.clear()
    assert losses("compiled", epochs=1, compile=True)[0] == pytest.approx(expected[0], rel=1e-6)
    assert len({layout.longest for layout in calls}) > 1
    losses("longer", epochs=3, compile=True)
    assert frames[0] == 0 < frames[1] == frames[2]
