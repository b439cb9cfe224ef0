from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from letters import letter_tokenizer

CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the tiny models, with a chat template that refuses system turns."""
    made = letter_tokenizer()
    made.chat_template = CHAT
    return made
