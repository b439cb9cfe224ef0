"""Tiny quantised models of every kind that this machine can run; the others are skipped with the reason."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from llm_adapters.errors import ModelError
from llm_adapters.model.loading import load_model
from llm_adapters.model.quantised_linears import plain_parts
from llm_adapters.model.quantization import KINDS
from tiny import tiny_model
from tiny_folder import tiny_folder

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 192, "max_position_embeddings": 512}
"""Inner sizes that blocks of 64 divide; see ``test_sizes_that_no_block_divides`` for others."""

_folder: list[tempfile.TemporaryDirectory[str]] = []  # removed with the process


def quantised_folder() -> Path:
    """The folder of a tiny unquantised llama whose sizes every kind takes, made once."""
    if not _folder:
        _folder.append(tempfile.TemporaryDirectory(prefix="tiny-quantised-"))
        wide_model().save_pretrained(tiny_folder(Path(_folder[0].name)))
    return Path(_folder[0].name)


def wide_model() -> PreTrainedModel:
    """The model in :func:`quantised_folder`."""
    return tiny_model("llama", **SIZES)


def needs(kind: str) -> None:
    """Skip where the library of ``kind`` is missing."""
    package = {"bnb": "bitsandbytes", "torchao": "torchao"}[kind.partition("-")[0]]
    if find_spec(package) is None:
        pytest.skip(f"{kind} needs the package {package}, which is not installed")


def quantised(kind: str, **options: str) -> PreTrainedModel:
    """A fresh tiny model, quantised; skips with the reason where that does not run here."""
    needs(kind)
    try:
        model, _ = load_model(quantised_folder(), quantization=kind, device="cpu", **options)
    except ModelError as failure:
        if "installed" not in str(failure):
            raise
        pytest.skip(str(failure).splitlines()[0])
    return model


def frozen_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of every plain tensor that the base consists of, by name."""
    state = {key: t for key, t in model.state_dict().items() if not key.startswith("llm_adapters.")}
    return {f"{key}/{i}": part.clone() for key, t in state.items() for i, part in enumerate(plain_parts(t))}


every_kind = pytest.mark.parametrize("kind", KINDS)
