"""A beginning that examples share is computed once, and the loss and the gradients are those of each alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.adapters.forms import dropout
from llm_adapters.adapters.method import methods
from llm_adapters.config.schema import TrainSection
from llm_adapters.data.collate import collate_packed
from llm_adapters.data.encoding import IGNORED, Encoded
from llm_adapters.model.packing_trial import PROBE, PROBE_SHARED, can_pack, can_share
from llm_adapters.model.sites import find_sites
from llm_adapters.train import batches as batches_module
from llm_adapters.train import stepper as stepper_module
from llm_adapters.train import train
from llm_adapters.train.batches import Batches
from llm_adapters.train.beginnings import shared_beginning, shares_beginnings
from llm_adapters.train.counting import count
from llm_adapters.train.loss import labelled_tokens, summed_loss
from llm_adapters.train.stepper import Stepper
from llm_adapters.train.team import Team
from llm_adapters.train.workload import Extent
from tiny import ALL_FAMILIES, put_on, small, tiny_model
from tiny_training import checkpoints, metrics, same, tiny_training

CPU = torch.device("cpu")
BEGINNING = list(range(20, 27))


def _rows(count: int, *, labelled_from: int = 9) -> list[Encoded]:
    draw = random.Random(0)
    rows = []
    for i in range(count):
        ids = [*BEGINNING, 30 + i, *(draw.randrange(3, 97) for _ in range(3 + 2 * i))]
        rows.append(Encoded(ids, [IGNORED] * labelled_from + ids[labelled_from:], truncated=False))
    return rows


def _loss_and_gradients(model: Any, adapter: Any, rows: list[Encoded], *, sharing: bool, size: int) -> Any:
    batches = Batches(model, pad_id=0, device=CPU)
    batches.sharing = sharing
    total, tokens = 0.0, 0
    for piece in batches.pieces([len(row.input_ids) for row in rows], size):
        tensors = batches.tensors([rows[index] for index in piece])
        tokens += tensors["input_ids"].numel()
        with batches.in_force():
            loss = summed_loss(model, tensors)
            loss.backward()
        total += float(loss.detach())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.parameters()]
    adapter.zero_grad(set_to_none=True)
    return total, found, tokens


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral", "olmo2", "phi3", "glm4_moe"])
@pytest.mark.parametrize("name", ["lora", "series", "parallel"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_each_example_alone(family: str, name: str, checkpointing: bool) -> None:
    model: Any = tiny_model(family)
    adapter = put_on(model, small(name), "a")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rows = _rows(4)
    alone, expected, read = _loss_and_gradients(model, adapter, rows, sharing=False, size=1)
    loss, gradients, computed = _loss_and_gradients(model, adapter, rows, sharing=True, size=4)
    assert computed == read - 3 * len(BEGINNING)
    assert loss == pytest.approx(alone, rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for here, there in zip(gradients, expected, strict=True):
        assert float((here - there).abs().max()) <= 2e-6 * max(1.0, scale)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_that_packs_can_share(family: str) -> None:
    model = tiny_model(family)
    batches = Batches(model, pad_id=0, device=CPU)
    losses = []
    for sharing in (False, True):
        batches.sharing = sharing
        tensors = batches.tensors(_rows(3))
        assert any(tensors.get("beginnings", [[0]])[0]) == (sharing and batches.packed)
        with torch.no_grad(), batches.in_force():
            losses.append(float(summed_loss(model, tensors)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_documents_longer_than_a_sliding_window() -> None:
    model: Any = tiny_model("gemma3_text")
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4
    model.config.sliding_window = 4
    adapter = put_on(model, small("lora"), "a")
    alone, expected, _ = _loss_and_gradients(model, adapter, _rows(4), sharing=False, size=1)
    loss, gradients, _ = _loss_and_gradients(model, adapter, _rows(4), sharing=True, size=4)
    assert loss == pytest.approx(alone, rel=1e-6)
    for here, there in zip(gradients, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


def test_a_label_ends_what_is_shared() -> None:
    assert shared_beginning(_rows(3)) == len(BEGINNING)
    assert shared_beginning(_rows(3, labelled_from=5)) == 4  # the fifth token is what predicts the first label
    assert shared_beginning(_rows(3, labelled_from=1)) == 0
    assert shared_beginning(_rows(1)) == 0
    rows = [Encoded([5, 6, 7], [IGNORED] * 3, truncated=False)] * 3
    assert shared_beginning(rows) == 2  # each keeps one of its own
    long = [Encoded([5, *[9 + i] * 60], [IGNORED] * 61, truncated=False) for i in range(3)]
    assert shared_beginning(long) == 0  # what it saves is not worth it


_example = st.lists(st.integers(0, 2), min_size=1, max_size=9).flatmap(
    lambda ids: st.builds(
        lambda labelled: Encoded(ids, [i if on else IGNORED for i, on in zip(ids, labelled, strict=True)], False),
        st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)),
    )
)


@given(st.lists(_example, min_size=1, max_size=5))
def test_no_token_no_label_and_no_position_is_lost(rows: list[Encoded]) -> None:
    batches = Batches(tiny_model("llama"), pad_id=0, device=CPU)
    batches.sharing = True
    tensors = batches.tensors(rows)
    (lengths,) = tensors["documents"]
    (begins,) = tensors["beginnings"]
    ids, labels, places = (tensors[name][0].tolist() for name in ("input_ids", "labels", "position_ids"))
    start = 0
    assert begins == [0] + [max(begins)] * (len(rows) - 1)
    for row, length, before in zip(rows, lengths, begins, strict=True):
        assert ids[:before] + ids[start : start + length] == row.input_ids
        assert [IGNORED] * before + labels[start : start + length] == [IGNORED, *row.labels[1:]]
        assert places[start : start + length] == list(range(before, before + length))
        start += length
    assert start == len(ids) == Extent.of(rows, packed=True, sharing=True).tokens
    assert sum(label != IGNORED for label in labels) == sum(labelled_tokens(row.labels) for row in rows)


@pytest.mark.parametrize("name", list(methods()))
def test_who_shares(name: str) -> None:
    model: Any = tiny_model("llama")
    adapter = put_on(model, small(name), "a")
    settings = TrainSection(batch_size=2, steps=1)
    stepper = Stepper(model, adapter, settings, learning_rate=1e-3, steps=1, pad_id=0, note=print, team=Team())
    assert not stepper.batches.sharing
    stepper.share_beginnings()
    assert stepper.batches.sharing == (not adapter.virtual_tokens)
    for option, shares in (("compile", stepper.batches.sharing), ("cache_frozen_layers", False)):
        assert shares_beginnings(settings.model_copy(update={option: True}), [adapter]) == shares


def test_virtual_tokens_of_another_adapter_forbid_it() -> None:
    model: Any = tiny_model("llama")
    lora = put_on(model, small("lora"), "a")
    assert shares_beginnings(TrainSection(), [lora])
    prefix = put_on(model, small("prefix"), "p")
    assert not shares_beginnings(TrainSection(), [lora, prefix])
    batches = Batches(model, pad_id=0, device=CPU)
    assert not batches.can_share
    batches.sharing = batches.can_share = True
    tensors = batches.tensors(_rows(3))
    with pytest.raises(ValueError, match="no virtual tokens"), batches.in_force():
        summed_loss(model, tensors)


def test_a_training_with_validation_shares_and_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(rows: Any, beginnings: Any) -> Any:
        seen.append(max(beginnings[0]))
        return collate_packed(rows, beginnings)

    def trained(folder: Path) -> list[float]:
        folder.mkdir()
        model: Any = tiny_model("llama")
        adapter = put_on(model, small("lora"), "a")
        train(
            model, adapter, _rows(8), TrainSection(batch_size=4, micro_batch=2, steps=4, validate_every=2),
            learning_rate=1e-3, pad_id=0, seed=0, folder=folder, validation=_rows(3),
        )  # fmt: skip
        return [row[key] for row in metrics(folder) for key in ("loss", "validation_loss") if key in row]

    monkeypatch.setattr(batches_module, "collate_packed", counted)
    shared = trained(tmp_path / "shared")
    assert len(BEGINNING) in seen
    assert seen.count(0) == 2  # a single row at the end of each validation
    seen.clear()
    monkeypatch.setattr(stepper_module, "shares_beginnings", lambda *_: False)
    assert trained(tmp_path / "whole") == pytest.approx(shared, rel=1e-5)
    assert set(seen) == {0}


def _interrupted(row: dict[str, float]) -> None:
    if row["step"] == 5:
        raise KeyboardInterrupt


def test_an_interrupted_training_that_shares_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": small("lora"), "beginning": 9, "micro_batch": 4, "checkpoint_every": 2}
    _, expected = tiny_training(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "cut", on_step=_interrupted, **options)
    result, adapter = tiny_training(tmp_path / "cut", **options)
    assert result.resumed == [4]
    assert same(adapter, expected)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same(checkpoints(tmp_path / "cut"), checkpoints(tmp_path / "whole"))


def test_out_of_memory_fewer_examples_share_and_the_loss_stays(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": small("lora"), "beginning": 9}
    tiny_training(tmp_path / "whole", **options)
    model: Any = tiny_model("llama")
    read: list[tuple[int, int]] = []

    def limit(_module: Any, _inputs: Any, given: dict[str, Any]) -> None:
        documents = given.get("documents", PROBE)
        if documents not in (PROBE, PROBE_SHARED):
            read.append((len(documents[0]), max(given["beginnings"][0])))
            if len(documents[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.layers[1].register_forward_pre_hook(limit, with_kwargs=True)
    result, _ = tiny_training(tmp_path / "oom", model=model, **options)
    assert result.micro_batch == 2
    assert set(read) == {(8, 9), (4, 9), (2, 9)}
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("whole", "oom")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_only_a_model_that_gives_the_same_shares() -> None:
    assert can_share(tiny_model("llama"), find_sites(tiny_model("llama")))
    both_ways: Any = tiny_model("llama")
    for layer in both_ways.model.layers:
        layer.self_attn.is_causal = False
        layer.self_attn.forward = _unmasked(layer.self_attn.forward)
    assert can_pack(both_ways, find_sites(both_ways))
    assert not can_share(both_ways, find_sites(both_ways))


def _unmasked(forward: Any) -> Any:
    def attend(*args: Any, **options: Any) -> Any:
        return forward(*args, **{**options, "attention_mask": None})

    return attend


def test_with_dropout_it_is_drawn_once_and_all_else_is_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an example alone draws the same for its beginning, its loss and gradients are the same."""
    model: Any = tiny_model("llama")
    adapter = put_on(model, small("lora", dropout=0.4), "a")
    model.train()
    rows, places = _rows(4), list[int]()
    masks = torch.rand(64, 256, generator=torch.Generator().manual_seed(1)) >= 0.4

    def stays(_draw: Any, like: torch.Tensor) -> torch.Tensor:  # by the position of a token and nothing else
        return masks[places, : like.shape[-1]].view(like.shape).to(torch.uint8)

    monkeypatch.setattr(dropout.Draw, "_stays", stays)

    def positions(_module: Any, _given: Any, options: dict[str, Any]) -> None:
        places[:] = options["position_ids"][0].tolist()

    model.model.layers[0].register_forward_pre_hook(positions, with_kwargs=True)
    alone, expected, _ = _loss_and_gradients(model, adapter, rows, sharing=False, size=1)
    loss, gradients, _ = _loss_and_gradients(model, adapter, rows, sharing=True, size=4)
    assert loss == pytest.approx(alone, rel=1e-6)
    for here, there in zip(gradients, expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=5e-5)  # small sums of large terms
    model.eval()
    plain, *_ = _loss_and_gradients(model, adapter, rows, sharing=True, size=4)
    assert plain != pytest.approx(loss, rel=1e-3)


def test_dropout_of_the_base_is_no_hindrance() -> None:
    model: Any = tiny_model("gpt2", attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.2)
    adapter = put_on(model, small("lora"), "a")
    model.train()
    loss, _, read = _loss_and_gradients(model, adapter, _rows(4), sharing=True, size=4)
    again, _, whole = _loss_and_gradients(model, adapter, _rows(4), sharing=False, size=4)
    assert read == whole - 3 * len(BEGINNING)
    assert loss == pytest.approx(again, rel=0.1)
    assert loss != again


def test_less_is_held_and_computed() -> None:
    with torch.device("meta"):
        model: Any = type(tiny_model("llama"))(tiny_model("llama").config)
    batches = Batches(model.train(), pad_id=0, device=CPU)
    whole = count(model, batches, _rows(6))
    batches.sharing = True
    shared = count(model, batches, _rows(6))
    assert shared.peak_bytes < whole.peak_bytes
    assert shared.operations < whole.operations
