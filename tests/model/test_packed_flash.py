"""One attention for all packed documents gives what each alone gives; the kernel, which needs a GPU, is written out.

With the kernel itself: ``tests/gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from llm_adapters.adapters.method import methods
from llm_adapters.data.encoding import Encoded
from llm_adapters.model import flash_kernel, packed_flash
from llm_adapters.model.flash_kernel import Bounds, formula
from llm_adapters.model.packed_flash import layout_of
from llm_adapters.model.packing import packing
from llm_adapters.model.packing_trial import can_pack
from llm_adapters.model.sites import find_sites
from llm_adapters.model.trial import passed
from tiny import put_on, small, tiny_model, token_ids
from tiny_training import examples, metrics, summed_gradients, tiny_training

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bounds]]:
    """Tensors on a CPU in float32 go through the formula that a GPU's kernel is tried against."""
    seen: list[Bounds] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, *, bounds: Bounds, **options: Any) -> tuple[Tensor, ...]:
        seen.append(bounds)
        for ends, most in zip((bounds.queries, bounds.keys), bounds.longest, strict=True):
            assert int(ends.diff().max()) == most
        return formula(q, k, v, bounds=bounds, **options), *(torch.empty(0) for _ in range(3))

    def backward(outer: Tensor, *given: Any, **options: Any) -> Sequence[Tensor]:
        leaves = [states.detach().requires_grad_() for states in given[:3]]
        with torch.enable_grad():
            return torch.autograd.grad(formula(*leaves, **options), leaves, outer)

    monkeypatch.setattr(flash_kernel, "forward", forward)
    monkeypatch.setattr(flash_kernel, "backward", backward)
    monkeypatch.setattr(flash_kernel, "_tried", {(CPU, torch.float32, head): True for head in (8, 16)})
    yield seen
    layout_of.cache_clear()


def _expect_equal(model: Any, adapter: Any, rows: list[Encoded], calls: list[Bounds], *, sharing: bool = False) -> None:
    alone, expected = summed_gradients(model, adapter, rows, packed=False, size=1)
    packed, found = summed_gradients(model, adapter, rows, packed=True, size=4, sharing=sharing, ready=calls.clear)
    assert packed == pytest.approx(alone, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", list(methods()))
def test_packed_is_unpacked(name: str, calls: list[Bounds]) -> None:
    model = tiny_model("llama")
    _expect_equal(model, put_on(model, small(name), "a"), examples(9), calls)
    assert calls
    assert {len(bounds.queries) for bounds in calls} == {4}  # three documents a pass


@pytest.mark.parametrize("family", ["qwen3", "mistral", "olmo2", "phi"])
def test_other_families(family: str, calls: list[Bounds]) -> None:
    model = tiny_model(family)
    _expect_equal(model, put_on(model, small("lora"), "a"), examples(6), calls)
    assert calls


@pytest.mark.parametrize("name", ["lora", "series"])
def test_a_shared_beginning(name: str, calls: list[Bounds]) -> None:
    model = tiny_model("llama")
    _expect_equal(model, put_on(model, small(name), "a"), examples(8, beginning=9), calls, sharing=True)
    assert calls
    assert all(bounds.queries[-1] < bounds.keys[-1] for bounds in calls)


@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_a_window_shorter_than_the_documents(name: str, calls: list[Bounds]) -> None:
    model = tiny_model("gemma3_text")
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4
    model.config.sliding_window = 4
    _expect_equal(model, put_on(model, small(name), "a"), examples(5), calls)
    assert len(calls) == (4 if name == "lora" else 2)  # behind a prefix the kernel would count it as distance


def test_rows_of_documents_that_see_virtual_tokens_and_beginnings() -> None:
    """Columns of two rows, two virtual tokens and two documents each: 0 1 | 2 3 4 | 5 6 and 7 8 | 9 10 | 11 12 13."""
    layout = layout_of(2, ((3, 2), (2, 3)), ((0, 1), (0, 0)), (((0, 0), (0, 0)), ((0, 2), (1, 2))), CPU)
    assert layout.seen is not None
    assert layout.seen.tolist() == [2, 3, 4, 2, 5, 6, 7, 8, 9, 10, 8, 11, 12, 13]
    assert layout.bounds.queries.tolist() == [0, 3, 5, 7, 10]
    assert layout.bounds.keys.tolist() == [0, 3, 6, 10, 14]
    assert layout.bounds.longest == (3, 4)
    states = torch.randn(14, 2, 3, requires_grad=True)
    outer = torch.randn(14, 2, 3)
    (expected,) = torch.autograd.grad(states.index_select(0, layout.seen), states, outer)
    torch.testing.assert_close(packed_flash._gathered(outer, states, layout), expected)


def test_documents_that_see_nothing_but_themselves_are_not_gathered() -> None:
    assert layout_of(0, ((3, 2), (4, 1)), ((0, 0), (0, 0)), (((0, 0),) * 2,) * 2, CPU).seen is None


def test_compiled_layers_call_it_and_are_not_compiled_anew_for_other_lengths(
    calls: list[Bounds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert len({bounds.longest for bounds in calls}) > 1
    losses("longer", epochs=3, compile=True)
    assert frames[0] == 0 < frames[1] == frames[2]


def test_a_kernel_that_fails_in_a_model_is_given_up_and_the_model_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: Any, **_options: Any) -> tuple[Tensor, ...]:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(flash_kernel, "forward", broken)
    model = tiny_model("llama")
    assert can_pack(model, find_sites(model))
    assert not flash_kernel.works_on(CPU, torch.float32, 8)


def test_documents_that_do_not_fill_their_row_are_refused() -> None:
    model = tiny_model("llama")
    decoder = find_sites(model).decoder
    with packing(decoder), pytest.raises(ValueError, match="in 1 rows of 7"):
        decoder(input_ids=token_ids(1, 7), use_cache=False, documents=[[3, 2]])


def test_the_order_is_torchs_own_again_when_the_last_is_done() -> None:
    before = torch.get_deterministic_debug_mode()
    first, second = flash_kernel._in_fixed_order(), flash_kernel._in_fixed_order()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_deterministic_debug_mode() == 2
    second.__exit__(None, None, None)
    assert torch.get_deterministic_debug_mode() == before == 0
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_kernel_that_is_wrong_or_missing_is_passed_over_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = partial(flash_kernel._works, CPU, torch.float32, 8)
    assert passed(trial, "not used")
    forward = flash_kernel.forward
    monkeypatch.setattr(flash_kernel, "forward", lambda *given, **named: (forward(*given, **named)[0] * 1.1,))
    with pytest.warns(UserWarning, match="not used: its numbers are not those of the formula"):
        assert not passed(trial, "not used")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="not used: "):  # without a GPU there is none
        assert not passed(partial(flash_kernel._works, CPU, torch.float16, 8), "not used")
