"""A tiny model with a tokenizer in a folder, and data for it: a whole run in a second or two."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny import PAD, VOCABULARY, tiny_model

DIGITS = "0123456789"


def tiny_folder(folder: Path) -> Path:
    """Save a tiny llama whose tokenizer has one id a letter."""
    letters = [*DIGITS, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-*/=?.,:;!#\n'"]
    words = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<unk>": 3} | {letter: i + 4 for i, letter in enumerate(letters)}
    assert len(words) <= VOCABULARY
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    tiny_model("llama", max_position_embeddings=512).save_pretrained(folder)
    return folder


def sums(path: Path, count: int, *, start: int = 0) -> Path:
    """A data file of additions."""
    rows = [
        {"instruction": f"{i} + {i % 7}?", "output": f"{i} + {i % 7} = {i + i % 7}", "answer": str(i + i % 7)}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_place(folder: Path, train: int, test: int, recipe: str = "") -> Path:
    """A folder with a tiny ``model``, additions in ``train.jsonl`` and ``test.jsonl``, and a ``tiny.yaml`` of all."""
    tiny_folder(folder / "model")
    sums(folder / "train.jsonl", train)
    sums(folder / "test.jsonl", test, start=60)
    (folder / "tiny.yaml").write_text("model: {source: model}\n" + recipe)
    return folder
