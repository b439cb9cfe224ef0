"""Loading: the bundled model is what it should be, padding is never the end, mistakes are explained."""

import json
import re
import time

import pytest
import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config

from llm_adapters.model import gguf, loading
from llm_adapters.model.loading import empty_model, load_config, load_model
from tiny import refused

TEXTS = [
    "12345.67",
    "x\n\n1. first\n\n\n 22 second",
    "a   12 +\t 3",
    "  two  blanks, trailing  ",
    "\n\n\r\n\ttabs\n",
    "Café déjà vu – Ελληνικά, 日本語, العربية, 🙂👩‍👩‍👧",
    "don't we'll I'M , . ! <b>",
    "½ ² Ⅷ ٣ 3½",
    "",
]


@pytest.fixture(scope="module")
def bundled():
    return load_model()


def save_tiny(folder, *, vocab_size=8, special=("<s>", "</s>"), **names):
    """A LLaMA checkpoint whose word-level tokenizer has the ``special`` tokens."""
    words = {word: index for index, word in enumerate([*special, "one", "two"])}
    backend = Tokenizer(models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The bundled model


def test_bundled_model_is_ready_for_use(bundled):
    model, tokenizer = bundled
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert model.model.embed_tokens.padding_idx == 0  # 2 would take the gradient from the real eos


def test_bundled_weights_are_the_dequantised_ones(bundled):
    stored = {tensor.name: tensor for tensor in GGUFReader(loading._find(loading.BUNDLED)).tensors}
    weights = bundled[0].state_dict()
    for ours, theirs in [("embed_tokens", "token_embd"), ("layers.7.mlp.down_proj", "blk.7.ffn_down")]:
        tensor = stored[f"{theirs}.weight"]
        expected = dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(weights[f"model.{ours}.weight"], torch.from_numpy(expected))


def test_bundled_model_reads_english(bundled):
    model, tokenizer = bundled
    text = "The capital of France is Paris. The capital of Germany is Berlin. Water boils at 100 degrees."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 2.5  # with queries and keys permuted as in GGUF: 3.4


@pytest.mark.usefixtures("bundled")
def test_loading_from_the_cache_is_fast():
    started = time.perf_counter()
    model, _ = load_model(dtype="bfloat16")
    assert time.perf_counter() - started < 3
    assert model.dtype == torch.bfloat16


# Its tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_give_the_text_back(bundled, text):
    tokenizer = bundled[1]
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_digits_stand_alone_whatever_is_around_them(bundled, text):
    tokenizer = bundled[1]
    pieces = [piece for piece in re.split(r"(\d|[½²Ⅷ])", text) if piece]
    assert tokenizer(text).input_ids == [i for piece in pieces for i in tokenizer(piece).input_ids]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
        ("x\n\n1", [104, 1116, 33]),  # transformers' own conversion: [104, 198, 198, 33]
    ],
)
def test_ids_are_those_of_the_published_tokenizer(bundled, text, ids):
    assert bundled[1](text).input_ids == ids  # so no BOS either


def test_digits_are_single_tokens(bundled):
    assert bundled[1].tokenize("12345.67") == list("12345.67")


def test_special_tokens_and_chat_template(bundled):
    tokenizer = bundled[1]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192
    assert all(tokenizer.added_tokens_decoder[i].special for i in range(17))
    assert tokenizer.decode([1, 4093, 2], skip_special_tokens=True) == "user"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n")


def test_cached_folder_is_an_ordinary_checkpoint(bundled):
    folder = gguf.cached_folder(loading._find(loading.BUNDLED))
    plain = AutoTokenizer.from_pretrained(folder)
    assert [plain(text).input_ids for text in TEXTS] == [bundled[1](text).input_ids for text in TEXTS]
    config = load_config()
    assert (config.model_type, config.num_hidden_layers) == ("llama", 30)
    assert not hasattr(config, "quantization_config")


def test_empty_model_has_the_structure_without_memory(bundled):
    empty = empty_model()
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in bundled[0].named_parameters()}


# Pad


@pytest.mark.parametrize(
    ("special", "names", "pad"),
    [
        (("</s>", "<pad>"), {"pad_token": "<pad>"}, "<pad>"),
        (("</s>", "<unk>"), {"pad_token": "</s>", "unk_token": "<unk>"}, "<unk>"),
        (("</s>", "<unk>", "<|image_pad|>", "<|pad|>"), {"unk_token": "<unk>"}, "<|pad|>"),
        (("</s>", "<|reserved_0|>"), {}, "<|reserved_0|>"),
        (("</s>", "<s>"), {"bos_token": "<s>"}, "<|pad|>"),  # new, in a spare row
    ],
)
def test_pad_is_never_eos(tmp_path, special, names, pad):
    folder = save_tiny(tmp_path, special=special, eos_token="</s>", **names)
    model, tokenizer = load_model(folder)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.config.pad_token_id == tokenizer.pad_token_id < model.config.vocab_size
    batch = tokenizer(["one", "one two"], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


def test_pad_is_eos_only_if_nothing_else_is_left(tmp_path, caplog):
    folder = save_tiny(tmp_path, special=("</s>",), vocab_size=3, eos_token="</s>")
    assert load_model(folder)[1].pad_token == "</s>"
    assert "mask by position" in caplog.text


# Mistakes


def test_unknown_names(tmp_path, monkeypatch):
    refused("smollm-135m-instruct", "nearest: smollm2-135m-instruct")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/no-such-model", "'nobody/no-such-model'", "check the id and the network")
    save_tiny(tmp_path / "qwen-tiny")
    refused(tmp_path / "qwen-tny", f"did you mean '{tmp_path / 'qwen-tiny'}'?")
    refused(str(tmp_path / "nothing.gguf"), "neither a model folder nor a .gguf file")


def test_folders_that_are_no_model(tmp_path):
    refused(tmp_path, "has no config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "load its base model and attach it")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not a valid JSON file")


def test_checkpoints_that_cannot_be_used(tmp_path):
    T5Config(num_layers=1).save_pretrained(tmp_path / "t5")
    for call in (load_model, load_config, empty_model):
        refused(tmp_path / "t5", "encoder–decoder", call=call)
    folder = save_tiny(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    refused(folder, "cannot be loaded")
    LlamaConfig.from_pretrained(folder, num_hidden_layers=2).save_pretrained(folder)
    weights.write_bytes(whole)
    refused(folder, "lacks 9 weights")
    weights.rename(folder / "pytorch_model.bin")
    refused(folder, "no file named model.safetensors")


def test_remote_code_runs_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "custom"
    folder.mkdir()
    raw = {"model_type": "custom-x", "auto_map": {"AutoConfig": "code.Config"}, "width": 7}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "code.py").write_text(
        "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Config(PretrainedConfig):\n    model_type = 'custom-x'\n"
    )
    refused(folder, "trust_remote_code=True")
    assert not (tmp_path / "ran").exists()
    assert load_config(folder, trust_remote_code=True).width == 7
    assert (tmp_path / "ran").exists()


def test_dtype_and_device(tmp_path):
    folder = save_tiny(tmp_path)
    assert load_model(folder, dtype=torch.float16)[0].dtype == torch.float16
    refused(folder, "nearest: bfloat16", dtype="bfloat")
    refused(folder, "unknown device 'gpu'", device="gpu")
    refused(folder, "cannot be loaded", no_such_option=1)
    if not torch.cuda.is_available():
        refused(folder, "no CUDA device", device="cuda")
