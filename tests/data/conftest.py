"""A real tokenizer that needs no download: one token a byte, and four special ones."""

from __future__ import annotations

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

settings.register_profile("loaded", deadline=None)  # a busy machine is no failure
settings.load_profile("loaded")

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_end|>", "<|im_start|>", "<s>", "<end_of_turn>"]


@pytest.fixture(scope="session")
def make_tokenizer():
    def make(post: str | None = None, chat_template: str | None = CHAT) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
        bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytewise.decoder = decoders.ByteLevel()
        bytewise.add_special_tokens(SPECIAL)
        if post:
            bytewise.post_processor = processors.TemplateProcessing(
                single=post, special_tokens=[(token, vocabulary[token]) for token in SPECIAL]
            )
        made = PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="<|im_end|>")
        made.chat_template = chat_template
        return made

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()
