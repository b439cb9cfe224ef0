"""Adapter files: ``adapter.json`` says what it is, ``adapter.safetensors`` holds its parameters; no pickles."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.fingerprint import differences, fingerprint
from llm_adapters.adapters.method import Method, parse_method
from llm_adapters.errors import AdapterError, OutputError, disk_mend, nearest

FORMAT = 1
_RECORD, _TENSORS = "adapter.json", "adapter.safetensors"


def save(adapter: Adapter, folder: Path, *, overwrite: bool = False) -> Path:
    """Write an adapter into ``folder``, all or nothing and without what only training needs.

    Raises:
        OutputError: the folder holds something already and ``overwrite`` is not set.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise OutputError(f"'{folder}' exists", mend="another folder, or overwrite=True (--force)")
    contents = files_of(adapter.folded())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            fresh = Path(temporary) / folder.name
            fresh.mkdir()
            for name, data in contents.items():
                write_synced(fresh / name, data)
            if folder.exists():
                _replace(folder, fresh, Path(temporary) / "old")
            else:
                os.replace(fresh, folder)
    except OSError as failure:
        raise OutputError(
            f"'{folder}' cannot be written: {failure.strerror or failure}",
            mend=f"another folder, or {disk_mend(failure)}",
        ) from failure
    return folder


def files_of(adapter: Adapter) -> dict[str, bytes]:
    """The names and contents of an adapter's files, nothing folded away; the record comes last."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter.state_dict().items()}
    data = tensors_to_bytes(state, metadata={"format": "pt"})
    record = {
        "format": FORMAT,
        "name": adapter.name,
        "methods": [method.recipe() for method in adapter.methods],
        "parameters": adapter.count(),
        "base": fingerprint(adapter.base),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    record["sha256"] = _digest(record)
    return {_TENSORS: data, _RECORD: (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()}


def _replace(folder: Path, fresh: Path, aside: Path) -> None:
    """Put ``fresh`` in place of an adapter's folder; a folder that holds other things only gets the two files."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} - {_RECORD, _TENSORS}:
        for name in (_TENSORS, _RECORD):
            os.replace(fresh / name, folder / name)
        return
    if folder.exists():
        os.replace(folder, aside)
    os.replace(fresh, folder)
    shutil.rmtree(aside, ignore_errors=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def load(folder: Path, name: str, base: Base, *, allow_other_base: bool = False) -> Adapter:
    """Read an adapter for ``base``.

    Raises:
        AdapterError: there is no adapter in ``folder``, its files are damaged, or it was trained on another base.
    """
    record, data = _read(folder, base, allow_other_base=allow_other_base)
    methods = [parse_method(recipe) for recipe in record["methods"]]
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: it shall not move the user's seed
        adapter = Adapter.build(name, [_without_text(method) for method in methods], base)
    try:
        state = tensors_from_bytes(data)
        first = next(iter(state.values()))
        adapter.to(first.dtype).load_state_dict(state)
    except (SafetensorError, RuntimeError, StopIteration) as failure:
        raise AdapterError(
            f"'{folder / _TENSORS}' does not hold the parameters that '{_RECORD}' describes: {failure}",
            mend="save the adapter again, or restore both files from the same save",
        ) from failure
    adapter.methods = tuple(methods)
    return adapter


def load_state(folder: Path, base: Base) -> dict[str, Tensor]:
    """The parameters in ``folder`` for an adapter that is there already; errors as in :func:`load`."""
    return tensors_from_bytes(_read(folder, base, allow_other_base=False)[1])


def _read(folder: Path, base: Base, *, allow_other_base: bool) -> tuple[dict[str, Any], bytes]:
    """Record and tensors of an adapter, found whole and to belong to ``base``."""
    record = read_record(folder)
    here, there = fingerprint(base), record["base"]
    structure, weights = differences(here, there)
    if structure:
        raise AdapterError(
            f"the adapter in '{folder}' was trained on another base:\n  " + "\n  ".join(structure),
            mend=f"load the base it was trained on: '{record['base'].get('model')}'",
        )
    if weights and not allow_other_base:
        raise AdapterError(
            f"the adapter in '{folder}' was trained on other weights of this architecture:\n  {weights[0]}",
            mend="load that base, or allow_other_base=True if the change is meant",
        )
    if here["quantization"] != there.get("quantization"):
        logging.getLogger(__name__).warning(
            "the adapter in '%s' was trained on a base that is %s; this one is %s, so its outputs differ a little",
            folder, *(fingerprinted.get("quantization") or "not quantised" for fingerprinted in (there, here)),
        )  # fmt: skip
    return record, _verified(folder / _TENSORS, record["tensors_sha256"])


def _without_text(method: Method) -> Method:
    """Initialising from text would need a tokenizer, and is overwritten by what the file holds."""
    from_text = getattr(method, "init", None) == "text"
    return method.model_copy(update={"init": "random", "init_text": ""}) if from_text else method


def read_record(folder: Path) -> dict[str, Any]:
    """The description of a saved adapter, checked for completeness."""
    path = folder / _RECORD
    if not path.is_file():
        near = nearest(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else None
        raise AdapterError(
            f"'{folder}' holds no adapter: '{_RECORD}' is missing",
            mend=f"did you mean '{folder.parent / near}'?" if near and near != folder.name else "check the path",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise AdapterError(f"'{path}' is damaged: {failure}", mend="restore it or save the adapter again") from failure
    missing = {"format", "methods", "base", "tensors_sha256", "sha256"} - set(
        record if isinstance(record, dict) else ()
    )
    if missing:
        raise AdapterError(f"'{path}' lacks {', '.join(sorted(missing))}", mend="save the adapter again")
    if record["format"] != FORMAT:
        raise AdapterError(
            f"'{path}' has format {record['format']!r}", allowed=[FORMAT], mend="update llm-adapters to read it"
        )
    recipes = record["methods"]
    if not isinstance(recipes, list) or not recipes or not all(isinstance(recipe, dict) for recipe in recipes):
        raise AdapterError(f"'{path}': 'methods' is no list of recipes", mend="save the adapter again")
    if not isinstance(record["base"], dict):
        raise AdapterError(f"'{path}': 'base' is no description of a model", mend="save the adapter again")
    if record["sha256"] != _digest(record):
        raise AdapterError(
            f"'{path}' was changed by hand: its SHA-256 is not the one that it states",
            mend="restore it; another recipe is another adapter, to be trained and saved",
        )
    return record


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of all that the record says, and so of the tensors' digest too, without its own."""
    said = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _verified(path: Path, sha256: str) -> bytes:
    if not path.is_file():
        raise AdapterError(f"'{path}' is missing", mend="restore it or save the adapter again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise AdapterError(
            f"'{path}' is truncated or was changed: its SHA-256 is not the one in '{_RECORD}'",
            mend="restore it or save the adapter again",
        )
    return data
