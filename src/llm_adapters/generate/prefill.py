"""Keys and values of prompts: in small groups of like length, their common beginning computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from llm_adapters.adapters.routing import RowRoute

_LEAST_SHARED = 8  # tokens: a shorter common beginning is not worth a pass of its own,
_LEAST_SHARING = 4  # nor is one of fewer prompts
_TOKENS = {"cpu": 2048}  # of a group: activations that stay in the processor's cache are twice as fast there
_TOKENS_ELSEWHERE = 16384

Forward = Callable[[Tensor, Tensor, Cache, Sequence[RowRoute]], object]
"""Runs ids (B, T) with a mask (B, columns), a cache and the routes of the rows."""


@dataclass(frozen=True)
class Prompt:
    """Tokens whose keys and values are wanted – all but the last, which is the first to be decoded."""

    tokens: Sequence[int]
    route: RowRoute


@dataclass(frozen=True)
class Filled:
    """Keys and values of a group of prompts, left-aligned.

    Attributes:
        lengths: tokens of each prompt, without the one to be decoded.
        layers: keys and values (prompts, H, longest, d) of every layer; none if no prompt has such a token.
    """

    lengths: list[int]
    layers: list[tuple[Tensor, Tensor]]

    @property
    def bytes_a_token(self) -> float:
        """Memory that one token takes in a cache."""
        return sum(states.nbytes / states.shape[0] / states.shape[2] for layer in self.layers for states in layer)


class Prefill:
    """Prompts of one call to ``generate``, and what many of one route begin with."""

    def __init__(self, forward: Forward, prompts: Sequence[Prompt], *, pad_id: int, device: torch.device) -> None:
        self.forward, self.pad_id, self.device = forward, pad_id, device
        self.most_tokens = _TOKENS.get(device.type, _TOKENS_ELSEWHERE)
        alike: dict[object, list[list[int]]] = {}
        for prompt in prompts:
            key = (hashable(prompt.route), tuple(prompt.tokens[:_LEAST_SHARED]))
            alike.setdefault(key, []).append(list(prompt.tokens[:-1]))
        shared = {key: _shared(each) for key, each in alike.items() if len(each) >= _LEAST_SHARING}
        self.shared: dict[object, list[int]] = {key: beginning for key, beginning in shared.items() if beginning}
        self._computed: dict[object, DynamicCache] = {}

    def key(self, prompt: Prompt) -> object:
        """The same for prompts that may stand in one group: of one route, and with what they share, if anything."""
        route = hashable(prompt.route)
        key = (route, tuple(prompt.tokens[:_LEAST_SHARED]))
        shared = self.shared.get(key)
        # A row that goes on after memory ran out has more tokens than the prompt that it was.
        return key if shared and list(prompt.tokens[: len(shared)]) == shared else route

    def beginning(self, prompt: Prompt) -> tuple[object, int]:
        """What a prompt shares with others, by its key, and how many tokens that is; 0 if nothing."""
        key = self.key(prompt)
        return key, len(self.shared.get(key, ()))

    def group(self, prompts: Sequence[Prompt]) -> int:
        """How many of the first of these prompts, longest first, to run together."""
        width, key = len(prompts[0].tokens), self.key(prompts[0])
        alike = next((i for i, prompt in enumerate(prompts) if self.key(prompt) != key), len(prompts))
        return max(1, min(alike, self.most_tokens // width))

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt]) -> Filled:
        """The keys and values of prompts of one key.

        Prompts stand left-aligned, so that nothing comes between the shared beginning and the rest: what attention
        counts in columns (windows, relative positions) stays as it is for a prompt alone.
        """
        shared = self.shared.get(self.key(prompts[0]), [])
        begin = len(shared)
        rests = [list(prompt.tokens[begin:-1]) for prompt in prompts]
        width = max(map(len, rests))
        cache = self._beginning(shared, prompts[0], len(prompts))
        if width:
            padded = [rest + [self.pad_id] * (width - len(rest)) for rest in rests]
            ids = torch.tensor(padded, device=self.device)
            mask = torch.ones(len(prompts), begin + width, dtype=torch.long, device=self.device)
            self.forward(ids, mask, cache, [prompt.route for prompt in prompts])
        lengths = [begin + len(rest) for rest in rests]
        return Filled(lengths, [(layer.keys, layer.values) for layer in cache.layers])

    def _beginning(self, shared: Sequence[int], prompt: Prompt, rows: int) -> DynamicCache:
        """A cache that holds the shared beginning for every row."""
        cache = DynamicCache()  # every layer keeps all its tokens; windows are left to the mask
        if not shared:
            return cache
        key = self.key(prompt)
        if key not in self._computed:
            computed = DynamicCache()
            ids = torch.tensor([list(shared)], device=self.device)
            self.forward(ids, torch.ones_like(ids), computed, [prompt.route])
            self._computed = {key: computed}  # the others come no more, or are computed again
        for i, layer in enumerate(self._computed[key].layers):
            cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
        return cache


def hashable(route: RowRoute) -> object:
    """The route of a row, to be compared."""
    return route if route is None or isinstance(route, str) else tuple(route)


def _shared(prompts: Sequence[list[int]]) -> list[int]:
    """The common beginning of several prompts, if it is worth computing apart."""
    low, high = min(prompts), max(prompts)  # what the first and the last in order share, all share
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length] if length >= _LEAST_SHARED else []
