"""Digests of data, to notice that it has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from llm_adapters.data.encoding import Encoded
from llm_adapters.data.example import Example


def data_digest(examples: Sequence[Example] | Sequence[Encoded]) -> str:
    """SHA-256 over examples, or over encoded examples: then template and tokenizer count too."""
    fields = [
        [e.input_ids, e.labels] if isinstance(e, Encoded) else [e.instruction, e.input, e.output, e.answer]
        for e in examples
    ]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode()).hexdigest()
