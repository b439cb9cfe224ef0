"""Out of memory: fewer rows at once, the same loss."""

import ctypes
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import llm_adapters as la
from llm_adapters.errors import TrainingError
from llm_adapters.model.memory import is_out_of_memory
from llm_adapters.model.packing_trial import PROBE, PROBE_SHARED
from llm_adapters.train.memory import return_freed_memory, shrinking
from tiny import tiny_model
from tiny_training import metrics, same, tiny_training

NO_DROPOUT = la.method("lora", rank=4)
CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def _limited(rows: int, failure: RuntimeError, *, spared: int = 0, calls: list[int] | None = None) -> nn.Module:
    """A model that half way through runs out of memory with more than so many rows, but for some first calls."""
    model = tiny_model("llama")
    seen: list[int] = [] if calls is None else calls

    def check(_module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if options.get("documents", PROBE) in (PROBE, PROBE_SHARED):
            return  # the trial before the training
        seen.append(sum(map(len, options["documents"])))
        if seen[-1] > rows and len(seen) > spared:
            raise failure

    model.model.layers[1].register_forward_pre_hook(check, with_kwargs=True)
    return model


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU)])
def test_the_micro_batch_shrinks_and_loss_and_adapter_stay(tmp_path: Path, failure: RuntimeError) -> None:
    _, whole = tiny_training(tmp_path / "whole", recipe=NO_DROPOUT)
    notes: list[str] = []
    result, shrunk = tiny_training(tmp_path / "oom", recipe=NO_DROPOUT, model=_limited(3, failure), notes=notes)
    for key in ("loss", "grad_norm", "tokens"):
        wanted = [row[key] for row in metrics(tmp_path / "whole")]
        assert [row[key] for row in metrics(tmp_path / "oom")] == pytest.approx(wanted, rel=1e-4)
    assert all(torch.allclose(shrunk[key], whole[key], atol=1e-5) for key in whole)
    assert result.micro_batch == 2
    assert [note.split(":")[0] for note in notes] == [
        "out of memory with 8 rows at a time",
        "out of memory with 4 rows at a time",
    ]


def test_what_was_begun_before_memory_ran_out_leaves_no_trace_and_the_size_is_remembered(tmp_path: Path) -> None:
    """Bit equal with dropout to a training that had the small micro-batch from the first step on."""
    _, expected = tiny_training(tmp_path / "small", micro_batch=2, checkpoint_every=2)
    model = _limited(3, RuntimeError(CPU), spared=1)  # the first half of the batch has its gradients by then
    options = {"micro_batch": 4, "checkpoint_every": 2}
    _, shrunk = tiny_training(tmp_path / "oom", model=model, **options)
    assert same(shrunk, expected)
    for left in (tmp_path / "oom/checkpoints/step-6").iterdir():
        left.unlink()
    calls: list[int] = []
    result, again = tiny_training(tmp_path / "oom", model=_limited(3, RuntimeError(CPU), calls=calls), **options)
    assert result.resumed == [4]
    assert max(calls) == 2
    assert same(again, expected)


def test_validation_shrinks_too(tmp_path: Path) -> None:
    tiny_training(tmp_path / "whole", recipe=NO_DROPOUT, batch_size=3, held_out=9, steps=2)
    model = _limited(2, RuntimeError(CPU))
    tiny_training(tmp_path / "oom", recipe=NO_DROPOUT, model=model, batch_size=3, held_out=9, steps=2)
    losses = [
        [row["validation_loss"] for row in metrics(tmp_path / name) if "validation_loss" in row]
        for name in ("whole", "oom")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_memory_that_the_optimiser_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_arguments: object, **_options: object) -> None:
        raise RuntimeError(CPU)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match="optimiser's step 1"):
        tiny_training(tmp_path)


def test_one_row_that_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="single row"):
        tiny_training(tmp_path, model=_limited(0, RuntimeError(CPU)))


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    def work(_size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        shrinking(work, 4, print)


def test_the_message_of_the_real_allocator_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_model_that_computes_no_activations_again_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(TrainingError, match="LlamaForCausalLM knows no gradient checkpointing"):
        tiny_training(tmp_path, model=model, gradient_checkpointing=True)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_was_freed_between_blocks_in_use_is_given_back() -> None:
    blocks = [torch.zeros(16 << 10) for _ in range(4000)]  # 64 KiB each
    kept = blocks[::2]
    del blocks
    before = psutil.Process().memory_info().rss
    return_freed_memory()
    assert before - psutil.Process().memory_info().rss > 64 << 20
    assert not any(block.any() for block in kept)
