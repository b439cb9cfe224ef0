"""Beam search in batches, by transformers' own ``generate`` on the model as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.generate.decoding import Completion
from llm_adapters.model.prepacked import Prepacked

_ROWS = 64  # beams of all prompts of a batch, if no batch size is given
_PLAIN = {
    "do_sample": False, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None, "bad_words_ids": None,
}  # fmt: skip
"""A model's own generation settings would make beams decode by other rules than the greedy engine."""


@torch.inference_mode()
def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: Sequence[int],
    stop_ids: Collection[int],
    pad_id: int = 0,
    batch_size: int | None = None,
    routes: Sequence[RowRoute] | None = None,
) -> Iterator[Completion]:
    """The likeliest completion of every prompt that a search with ``beams`` beams finds.

    Length penalty 1, as in transformers and in the reference. Longest prompts first, padded batches, no refill.

    Args:
        model: a causal language model, with or without adapters.
        prompts: token ids of each prompt.
        beams: hypotheses kept for every prompt.
        max_new_tokens: limit of new tokens for each prompt.
        stop_ids: tokens that end a completion.
        pad_id: any valid token id.
        batch_size: prompts decoded together.
        routes: the adapters of each prompt; None leaves those in force.
    """
    size = batch_size or max(1, _ROWS // beams)
    order = sorted(range(len(prompts)), key=lambda i: (-max_new_tokens[i], -len(prompts[i]), i))
    device = model.get_input_embeddings().weight.device
    prepacked = Prepacked(model)
    while order:
        limit = max_new_tokens[order[0]]
        batch = [i for i in order[:size] if max_new_tokens[i] == limit]
        order = order[len(batch) :]
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[pad_id] * (width - len(prompts[i])) + list(prompts[i]) for i in batch], device=device)
        lengths = torch.tensor([len(prompts[i]) for i in batch], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        routed = nullcontext() if routes is None else operations.route(model, [routes[i] for i in batch], expand=beams)
        with prepacked(), routed:
            found = model.generate(
                input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=limit,
                eos_token_id=sorted(stop_ids) or None, pad_token_id=pad_id, **_PLAIN,
            )  # fmt: skip
        for i, row in zip(batch, found[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in stop_ids), None)
            yield Completion(i, row[:end], end is not None)
