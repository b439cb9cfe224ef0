"""A tokenizer for the tiny models that needs no download: one token a printable character, and three special ones."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]  # the ids 0, 1, 2 of the tiny models


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Characters 32 to 125 as the tokens 3 to 96; a line break is unknown, and reads as a question mark."""
    letters = [*SPECIAL, *map(chr, range(32, 126))]
    whole = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="?"))
    whole.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    whole.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
