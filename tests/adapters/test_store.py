"""Files: another base, a damaged or changed folder and a failed save are refused, and harm nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llm_adapters.adapters.attach import attach
from llm_adapters.adapters.merge import merge, unmerge
from llm_adapters.adapters.method import method
from llm_adapters.errors import AdapterError, MethodError, OutputError
from tiny import IDS, Letters, logits, put_on, randomise, small, state_of, tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved LoRA of the tiny llama."""
    return put_on(tiny_model("llama"), small("lora"), "a").save(tmp_path / "saved")


def refused(saved: Path, words: str, model: nn.Module | None = None, **options: Any) -> None:
    """Loading fails in these words, and leaves the model as it was."""
    target = tiny_model("llama") if model is None else model
    before = state_of(target)
    with pytest.raises(AdapterError, match=words):
        attach(target, saved, "b", **options)
    assert state_of(target) == before


def test_other_bases_are_refused(saved: Path) -> None:
    refused(saved, r"(?s)another base:\n  model_type: trained on 'llama', this model has 'qwen3'", tiny_model("qwen3"))
    refused(saved, "width: trained on 32, this model has 64", tiny_model("llama", hidden_size=64))
    refused(saved, "layers: trained on 2, this model has 3", tiny_model("llama", num_hidden_layers=3))
    refused(saved, "vocabulary: trained on 97, this model has 80", tiny_model("llama", vocab_size=80))
    both = tiny_model("gpt2", hidden_size=64)
    refused(saved, r"(?s)model_type: .*width: ", both, allow_other_base=True)
    other = tiny_model("llama", seed=1)
    refused(
        saved, r"(?s)other weights of this architecture:\n  weights: \d+ of the sampled.*allow_other_base=True", other
    )
    adapter = attach(other, saved, "b", allow_other_base=True)
    assert torch.equal(
        adapter.state_dict()["lora.0.attn_q.A"], load_file(saved / "adapter.safetensors")["lora.0.attn_q.A"]
    )


def test_the_same_base_in_another_dtype_or_with_adapters_is_the_same(saved: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert attach(tiny_model("llama").to(dtype), saved, "b").count() > 0
    model = tiny_model("llama")
    put_on(model, small("lora"), "other")
    assert attach(model, saved, "b").count() > 0


def test_a_base_with_something_merged_into_it_is_another_base(saved: Path) -> None:
    model = tiny_model("llama")
    put_on(model, small("lora"), "other")
    merge(model, "other")
    with pytest.raises(AdapterError, match="other weights"):
        attach(model, saved, "b")
    unmerge(model, "other")
    assert attach(model, saved, "b").count() > 0


def test_a_base_fine_tuned_in_full_is_another_base(saved: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    refused(saved, "other weights", model)


def test_truncated_and_changed_tensors(saved: Path) -> None:
    tensors, data = saved / "adapter.safetensors", (saved / "adapter.safetensors").read_bytes()
    tensors.write_bytes(data[:-10])
    refused(saved, "truncated or was changed: its SHA-256")
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(saved, "truncated or was changed")
    tensors.write_bytes(b"")
    refused(saved, "truncated or was changed")
    tensors.unlink()
    refused(saved, r"adapter.safetensors' is missing\n  mend: ")
    tensors.write_bytes(data)
    attach(tiny_model("llama"), saved, "b")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any], *, signed: bool = True) -> None:
    """Change ``adapter.json``; ``signed`` states the digest of what is then said, as a forger would."""
    path = folder / "adapter.json"
    record = json.loads(path.read_text())
    stated = record["sha256"]
    change(record)
    if signed and record.get("sha256") == stated:
        said = {key: value for key, value in record.items() if key != "sha256"}
        record["sha256"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(record))


def test_a_recipe_changed_by_hand_is_refused(saved: Path) -> None:
    rewritten(saved, lambda record: record["methods"][0].update(alpha=160.0), signed=False)
    refused(saved, "changed by hand")


def test_tensors_that_are_not_the_recipe(saved: Path) -> None:
    good = (saved / "adapter.json").read_text()
    rewritten(saved, lambda record: record["methods"][0].update(rank=5))
    refused(saved, r"(?s)does not hold the parameters that 'adapter.json' describes: .*size mismatch")
    rewritten(saved, lambda record: record["methods"][0].update(rank=3, sites=["attn.q"]))
    refused(saved, r"(?s)does not hold the parameters.*Unexpected key")
    (saved / "adapter.json").write_text(good)
    for state in ({"other": torch.zeros(2)}, {}):
        save_file(state, saved / "adapter.safetensors")
        digest = hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest()
        rewritten(saved, lambda record, digest=digest: record.update(tensors_sha256=digest))
        refused(saved, "does not hold the parameters")
    (saved / "adapter.safetensors").write_bytes(b"\x80\x04not safetensors")
    digest = hashlib.sha256(b"\x80\x04not safetensors").hexdigest()
    rewritten(saved, lambda record: record.update(tensors_sha256=digest))
    refused(saved, "does not hold the parameters")


def test_damaged_descriptions(saved: Path, tmp_path: Path) -> None:
    good = (saved / "adapter.json").read_text()
    (saved / "adapter.json").write_text(good[:-20])
    refused(saved, "adapter.json' is damaged")
    (saved / "adapter.json").write_bytes(b"\xff\xfe\x00")
    refused(saved, "adapter.json' is damaged")
    (saved / "adapter.json").write_text("[]")
    refused(saved, "lacks base, format, methods, sha256, tensors_sha256")
    for change, words in (
        (lambda record: record.pop("sha256"), "lacks sha256"),
        (lambda record: record.update(format=2), r"has format 2\n  allowed: 1"),
        (lambda record: record.update(base=None), "'base'"),
        (lambda record: record.update(methods=[]), "'methods'"),
        (lambda record: record.update(methods=["lora"]), "'methods'"),
        (lambda record: record.update(sha256=5), "changed by hand"),
        (lambda record: record.update(tensors_sha256=5), "truncated or was changed"),
    ):
        (saved / "adapter.json").write_text(good)
        rewritten(saved, change)
        refused(saved, words)
    (saved / "adapter.json").write_text(good)
    refused(tmp_path / "save", r"holds no adapter: 'adapter.json' is missing\n  mend: .*did you mean '.*/saved'\?")
    refused(tmp_path / "absent" / "x", "holds no adapter")


def test_recipes_in_files_are_checked_like_any_other(saved: Path) -> None:
    rewritten(saved, lambda record: record["methods"][0].update(method="lorra"))
    with pytest.raises(MethodError, match="unknown method 'lorra'"):
        attach(tiny_model("llama"), saved, "b")
    rewritten(saved, lambda record: record["methods"][0].update(method="lora", rank=-1))
    with pytest.raises(MethodError, match="field 'rank' is -1"):
        attach(tiny_model("llama"), saved, "b")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_saving_does_not_overwrite_unasked(tmp_path: Path) -> None:
    adapter = put_on(tiny_model("llama"), small("lora"), "a")
    adapter.save(tmp_path / "x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    randomise(adapter, seed=7)
    for folder in ("x", "notes", "file"):
        with pytest.raises(OutputError, match=rf"{folder}' exists\n  mend: .*overwrite=True"):
            adapter.save(tmp_path / folder)
    assert listing(tmp_path) == before
    adapter.save(tmp_path / "x", overwrite=True)
    adapter.save(tmp_path / "notes", overwrite=True)
    after = listing(tmp_path)
    assert after["x/adapter.safetensors"] != before["x/adapter.safetensors"]
    assert after["notes/mine.txt"] == b"mine"
    assert sorted(after) == sorted([*before, "notes/adapter.json", "notes/adapter.safetensors"])
    (tmp_path / "empty").mkdir()
    assert adapter.save(tmp_path / "empty") == tmp_path / "empty"
    assert adapter.save(tmp_path / "new" / "deep").is_dir()
    assert not list(tmp_path.rglob(".*"))  # no temporary folder is left


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = put_on(tiny_model("llama"), small("lora"), "a")
    adapter.save(tmp_path / "x")
    before = listing(tmp_path)
    randomise(adapter, seed=7)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space"):
        adapter.save(tmp_path / "x", overwrite=True)
    assert listing(tmp_path) == before


def test_a_prefix_from_text_is_loaded_without_a_tokenizer(tmp_path: Path) -> None:
    model = tiny_model("llama")
    recipe = method("prefix", init="text", init_text="solve", tokens=5)
    saved = attach(model, recipe, "a", tokenizer=Letters()).save(tmp_path / "x")
    expected = logits(model, IDS)
    again = tiny_model("llama")
    assert attach(again, saved, "b").methods == (recipe,)
    assert torch.equal(logits(again, IDS), expected)
    with pytest.raises(MethodError, match="initialising from text needs the tokenizer"):
        attach(again, recipe, "c")
