"""GGUF files, converted once into a cached folder of safetensors.

transformers reads GGUF, but takes 20 s for 135M parameters, gives a model that refuses to be saved, and does
not know every tokenizer. The folder made here is an ordinary Hugging Face checkpoint.

    $LLM_ADAPTERS_CACHE or ~/.cache/llm-adapters
      gguf/.lock                one conversion at a time
      gguf/KEY/                 config, tokenizer, model.safetensors, and conversion.json, written last
      gguf/KEY.tmp-*/           a conversion under way, or one that died: swept by the next
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from llm_adapters.config.cache import cache_root
from llm_adapters.errors import MissingExtraError, ModelError

CONVERTER = 1  # part of the cache key; raised when the same file would be converted into something else
MANIFEST = "conversion.json"

# A byte-level BPE file only names its pre-tokeniser (`tokenizer.ggml.pre`, names of llama.cpp). transformers
# builds some of them and leaves GPT-2's split for the rest; these two rows are the rest that is known.
# `Digits` before GPT-2's split matters beyond digits: without it, blanks and newlines before a digit are cut
# elsewhere ("x\n\n1", "a   12").
DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"}

_USE_ORIGINAL = "load the model's own safetensors checkpoint instead of the .gguf file"


def converted(path: Path) -> Path:
    """The folder that holds the model of the GGUF file ``path`` in float32, made by the first call.

    Floats are kept as dequantised: half precision would change them (4 bytes a parameter on disk).
    Processes that ask at once wait for the one that converts; one that was killed leaves nothing that counts.

    Raises:
        ModelError: the file is damaged or cannot be converted, or the cache cannot be written.
        MissingExtraError: the package ``gguf`` is not installed and the file is not in the cache yet.
    """
    if _complete(folder := cached_folder(path)):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if not _complete(folder):  # another process may have made it while this one waited
                _sweep(folder)
                _convert(path, folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the converted model of '{path.name}' cannot be written below '{folder.parent}': {error}",
            mend="free some space (4 bytes a parameter), or name another folder in LLM_ADAPTERS_CACHE",
        ) from error
    return folder


def read_config(path: Path) -> PretrainedConfig:
    """The config of a GGUF file, without its weights; from the cache if the file was converted before."""
    if _complete(folder := cached_folder(path)):
        return AutoConfig.from_pretrained(folder)
    _inspect(path)
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def cached_folder(path: Path) -> Path:
    """Where the file's conversion lies or will lie: named by content (about 0.1 s for each 100 MB)."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_root() / "gguf" / f"{digest[:32]}-v{CONVERTER}"


def _complete(folder: Path) -> bool:
    """Whether every file of the conversion is there in its full size."""
    try:
        sizes: dict[str, int] = json.loads((folder / MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _sweep(folder: Path) -> None:
    """Remove what dead conversions left, and a damaged ``folder``; the lock says that none of it is alive."""
    for leftover in [*folder.parent.glob("*.tmp-*"), folder]:
        if leftover.exists():
            shutil.rmtree(leftover)


def _convert(path: Path, folder: Path) -> None:
    with TemporaryDirectory(prefix=f"{folder.name}.tmp-", dir=folder.parent) as temporary:
        work = Path(temporary) / "model"
        pre = _inspect(path)
        tokenizer, model = _read(path)
        tokenizer.save_pretrained(work)
        _correct(work / "tokenizer.json", pre, model.config.vocab_size)
        model.save_pretrained(work)
        sizes = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
        (work / MANIFEST).write_text(json.dumps({"source": path.name, "files": sizes}, indent=2))
        # A rename may reach the disk before the data does: sync, so that a complete folder stays one.
        for written in [*work.iterdir(), work]:
            _sync(written)
        work.rename(folder)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[PreTrainedTokenizerFast, Any]:
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"'{path}' cannot be converted: {error}", mend=_USE_ORIGINAL) from error
    require_all_weights(info, path)
    tokenizer.model_max_length = model.config.max_position_embeddings
    return tokenizer, _without_quantizer(model, config)


def _without_quantizer(model: Any, config: PretrainedConfig) -> Any:
    """The same weights in a model that can be saved: the quantiser that GGUF brings with it refuses."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def require_all_weights(info: dict[str, Any], where: str | Path) -> None:
    """Refuse a model whose checkpoint lacks weights: transformers only warns and makes them random."""
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"'{where}' lacks {len(missing)} weights of its model: {', '.join(missing[:3])}",
            mend="use a complete checkpoint of a causal language model (join a split .gguf first)",
        )


def _correct(file: Path, pre: str, rows: int) -> None:
    """Cut text as the vocabulary was trained, and drop tokens that the file does not have.

    transformers falls back on GPT-2's split, and adds GPT-2's ``<|endoftext|>`` past the embedding's rows.
    """
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < rows]
    split = raw["pre_tokenizer"] or {}
    if split.get("type") == "ByteLevel" and pre not in GPT2:
        if pre not in DIGITS_THEN_GPT2:
            raise ModelError(f"the pre-tokeniser '{pre}' of the .gguf file is not known", mend=_USE_ORIGINAL)
        digits = {"type": "Digits", "individual_digits": True}
        raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, split]}
    file.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")


def _inspect(path: Path) -> str:
    """Refuse what would be read wrongly, and give the name of the pre-tokeniser."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "reading a .gguf file") from error
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise ModelError(f"'{path}' is truncated or not a GGUF file", mend="copy it again") from error
    architecture = _text(reader, "general.architecture")
    scaling = _text(reader, f"{architecture}.rope.scaling.type") or "none"
    rescaled = any(tensor.name.startswith("rope_f") for tensor in reader.tensors)
    if architecture != "gpt-oss" and (scaling != "none" or rescaled):
        raise ModelError(f"'{path}' scales its rotary positions, which would be lost", mend=_USE_ORIGINAL)
    return _text(reader, "tokenizer.ggml.pre") or "default"


def _text(reader: Any, key: str) -> str:
    field = reader.fields.get(key)
    return "" if field is None else bytes(field.parts[field.data[0]]).decode()
