"""Training: half precision, autocast, dropout, checkpointing and the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_adapters.adapters.attach import attach, detach, route
from llm_adapters.adapters.method import methods
from llm_adapters.errors import UserError
from tiny import IDS, enable_checkpointing, gap, logits, put_on, small, tiny_model
from tiny_trainer import memorise


@pytest.mark.parametrize("name", methods())
def test_a_half_precision_base_trains_full_precision_adapters(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapter = put_on(model, small(name), "a")
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-2)
    losses = []
    for _ in range(6):
        out = model(IDS, labels=IDS)
        losses.append(float(out.loss))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert out.logits.dtype == torch.bfloat16
    assert losses[-1] < losses[0] - 0.1
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())
    put_on(model, small("lora"), "b")
    with route(model, ["a", None, "b"]):
        assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (3, 8)
    detach(model, "b")
    saved = adapter.save(tmp_path / "x")
    assert {value.dtype for value in load_file(saved / "adapter.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", methods())
def test_autocast(name: str) -> None:
    model = tiny_model("llama")
    a, _ = put_on(model, small(name), "a"), put_on(model, small("lora"), "b", seed=2)
    for rows in ("a", ["a", "b", None], ["a", None, "a"]):
        with route(model, rows):
            full = logits(model, IDS)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(IDS, labels=IDS).loss
                half = logits(model, IDS)
        assert gap(half.float(), full) < 0.05 * float(full.abs().max())
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in a.parameters())


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model("llama")
    for name in ("lora", "series"):
        adapter = put_on(model, small(name, dropout=0.5), name)
        assert torch.equal(logits(model, IDS), logits(model, IDS))
        model.train()
        assert adapter.training
        assert gap(logits(model, IDS), logits(model, IDS)) > 1e-2
        model.eval()
        detach(model)


def test_checkpointing_that_cannot_work_is_refused() -> None:
    model = tiny_model("llama").train()
    put_on(model, small("lora"), "a")
    enable_checkpointing(model, use_reentrant=True)
    with pytest.raises(UserError, match=r"(?s)use_reentrant=True.*use_reentrant': False"):
        model(IDS, labels=IDS)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("lora", {}),
        ("lora", {"bf16": True}),
        ("prefix", {"gradient_checkpointing": True}),
        ("houlsby", {"gradient_checkpointing": True, "bf16": True}),
    ],
    ids=["lora", "lora-bf16", "prefix-checkpointing", "houlsby-both"],
)
def test_the_trainer_of_transformers(recipe: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapter = attach(model, small(recipe))
    start = {key: value.clone() for key, value in adapter.state_dict().items()}
    before, after = memorise(model, tmp_path, **options)
    assert after < before - 0.2
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())
    assert [key for key, value in adapter.state_dict().items() if torch.equal(value, start[key])] == []
