"""Batched greedy decoding with a key–value cache; finished rows leave the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    Attributes:
        prompt: index of the prompt.
        ids: the new token ids, without the token that stopped it.
        stopped: whether it ended by itself, and not at the limit.
    """

    prompt: int
    ids: list[int]
    stopped: bool


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int = 0,
    batch_size: int = 64,
    routes: Sequence[RowRoute] | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[Completion]:
    """Complete every prompt greedily; completions come batch by batch, longest prompts first.

    Args:
        model: a causal language model, with or without adapters.
        prompts: token ids of each prompt.
        max_new_tokens: limit of new tokens a prompt.
        stop_ids: tokens that end a completion.
        pad_id: any valid token id; padded positions are masked.
        batch_size: prompts decoded together.
        routes: the adapters of each prompt (see :func:`llm_adapters.route`); None leaves those in force.
        on_token: called with the number of tokens of every step, for a progress bar.
    """
    # Longest first: rows of one batch are alike, and if memory does not suffice it shows at once.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        decoder = _Batch(model, [prompts[i] for i in chosen], pad_id, [routes[i] for i in chosen] if routes else None)
        for row, ids, stopped in decoder.run(max_new_tokens, set(stop_ids), on_token):
            yield Completion(chosen[row], ids, stopped)


class _Batch:
    """One batch under way: rows still running, their cache and mask."""

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int, routes: Sequence[RowRoute] | None
    ) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.routes = None if routes is None else list(routes)
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        width = max(map(len, prompts))
        padded = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self.ids = torch.tensor(padded, device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()
        self.rows = list(range(len(prompts)))
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))

    @torch.inference_mode()
    def run(
        self, limit: int, stop_ids: set[int], on_token: Callable[[int], None] | None
    ) -> list[tuple[int, list[int], bool]]:
        """Decode until every row has stopped or reached the limit; gives (row, new ids, stopped)."""
        written: list[list[int]] = [[] for _ in self.rows]
        finished: list[tuple[int, list[int], bool]] = []
        for _ in range(limit):
            chosen = self._next_tokens()
            tokens = chosen.tolist()
            if on_token is not None:
                on_token(len(tokens))
            going = []
            for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
                if token in stop_ids:
                    finished.append((row, written[row], True))
                else:
                    written[row].append(token)
                    going.append(i)
            if not going:
                return finished
            self._keep(going, chosen)
        return finished + [(row, written[row], False) for row in self.rows]

    def _next_tokens(self) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.takes_positions:
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -self.ids.shape[1] :]
        through = nullcontext() if self.routes is None else operations.route(self.model, self.routes)
        with through:
            output = self.model(**inputs, past_key_values=self.cache, use_cache=True, **self.options)
        return output.logits[:, -1].argmax(-1)

    def _keep(self, going: list[int], chosen: Tensor) -> None:
        """Go on with the rows ``going``, whose last tokens are in ``chosen``."""
        if len(going) < len(self.rows):
            kept = torch.tensor(going, device=self.device)
            self.cache.batch_select_indices(kept)
            self.mask, chosen = self.mask[kept], chosen[kept]
            self.rows = [self.rows[i] for i in going]
            self.routes = None if self.routes is None else [self.routes[i] for i in going]
        self.ids = chosen[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
