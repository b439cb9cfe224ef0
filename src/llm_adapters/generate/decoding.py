"""Batched decoding with continuous refill: as rows finish, waiting prompts take their places."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError
from llm_adapters.generate.slab import SlabLayer

_REFILL_SHARE = 8  # prompts are taken in when an eighth of the rows is free: small prefills waste the machine


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


@dataclass
class _Row:
    """A prompt being completed."""

    prompt: int
    route: RowRoute
    ids: list[int] = field(default_factory=list)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int = 0,
    batch_size: int = 64,
    routes: Sequence[RowRoute] | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[Completion]:
    """Complete every prompt greedily; each completion comes as soon as it is finished.

    Args:
        model: a causal language model, with or without adapters.
        prompts: token ids of each prompt, none empty.
        max_new_tokens: limit of new tokens a prompt.
        stop_ids: tokens that end a completion.
        pad_id: any valid token id; padded positions are masked.
        batch_size: prompts decoded together.
        routes: the adapters of each prompt (see :func:`llm_adapters.route`); None leaves those in force.
        on_token: called with the number of tokens of every step, for a progress bar.

    Raises:
        UserError: a prompt is empty.
    """
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise UserError(f"prompt {empty[0]} has no token", mend="give every prompt some text, or a BOS token")
    # Longest first: rows of one batch are alike, and if memory does not suffice it shows at once.
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    decoder = _Decoder(model, prompts, pad_id=pad_id, limit=max_new_tokens, stop_ids=frozenset(stop_ids), routes=routes)
    waiting = order
    while waiting or decoder.live:
        free = batch_size - decoder.live
        if free >= max(1, batch_size // _REFILL_SHARE) or not decoder.live:
            taken, waiting = waiting[:free], waiting[free:]
            yield from decoder.take_in(taken)
        if decoder.live:
            yield from decoder.step()
        if on_token is not None:
            on_token(decoder.pop_count())


class _Decoder:
    """The batch under way: its rows, their cache, and which of its columns each row sees.

    A finished row leaves an empty place (None), which goes on computing until a prompt takes it or the batch is
    made smaller: moving the cache for every finished row would cost more.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        pad_id: int,
        limit: int,
        stop_ids: frozenset[int],
        routes: Sequence[RowRoute] | None,
    ) -> None:
        self.model, self.prompts, self.pad_id = model, prompts, pad_id
        self.limit, self.stop_ids, self.routes = limit, stop_ids, routes
        self.device = model.get_input_embeddings().weight.device
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.rows: list[_Row | None] = []
        self.cache = Cache(layer_class_to_replicate=SlabLayer)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)  # (B, columns of the cache)
        self.count = 0

    @property
    def live(self) -> int:
        """Rows that still write."""
        return sum(row is not None for row in self.rows)

    def pop_count(self) -> int:
        """Tokens written since the last call."""
        count, self.count = self.count, 0
        return count

    @torch.inference_mode()
    def take_in(self, indices: Sequence[int]) -> list[Completion]:
        """Give empty places to prompts and write the first token of each; gives those that are finished by it.

        Places that stay empty are taken away.
        """
        finished: list[Completion] = []
        if indices:
            new = [_Row(i, self.routes[i] if self.routes else None) for i in indices]
            texts = [self.prompts[i] for i in indices]
            width = max(map(len, texts))
            ids = torch.tensor([[self.pad_id] * (width - len(t)) + list(t) for t in texts], device=self.device)
            lengths = torch.tensor([len(t) for t in texts], device=self.device)
            mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()
            cache = DynamicCache()  # every layer keeps all its tokens; windows are left to the mask
            finished, going = self._write(new, self._forward(ids, mask, cache, [row.route for row in new]))
            self._join([new[i] for i in going], mask, cache, torch.tensor(going, dtype=torch.long, device=self.device))
        self._tidy()
        return finished

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Write one more token in every row; gives the rows that are finished by it."""
        ids = torch.tensor([[row.ids[-1] if row else self.pad_id] for row in self.rows], device=self.device)
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        # An empty place computes along: on the route of a row that lives, so that it needs no group of its own.
        some = next(row.route for row in self.rows if row)
        routes = [row.route if row else some for row in self.rows]
        finished, going = self._write(self.rows, self._forward(ids, self.mask, self.cache, routes))
        kept = set(going)
        self.rows = [row if i in kept else None for i, row in enumerate(self.rows)]
        return finished

    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache, routes: Sequence[RowRoute]) -> list[int]:
        """The next token of every row."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with nullcontext() if self.routes is None else operations.route(self.model, routes):
            output = self.model(**inputs, past_key_values=cache, use_cache=True, **self.options)
        chosen: list[int] = output.logits[:, -1].argmax(-1).tolist()
        return chosen

    def _write(self, rows: Sequence[_Row | None], tokens: Sequence[int]) -> tuple[list[Completion], list[int]]:
        """Append tokens to their rows; gives what is finished, and the indices of the rows that go on."""
        finished, going = [], []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row is None:
                continue
            self.count += 1
            stopped = token in self.stop_ids
            if not stopped:
                row.ids.append(token)
            if stopped or len(row.ids) == self.limit:
                finished.append(Completion(row.prompt, row.ids, stopped))
            else:
                going.append(i)
        return finished, going

    def _join(self, new: list[_Row], mask: Tensor, prefilled: Cache, going: Tensor) -> None:
        """Put the prefilled rows ``going`` into empty places, their newest columns under those of the others."""
        if not new:
            return
        mask = mask[going]
        if not self.live:
            self.rows, self.mask = list(new), mask
            self.cache = Cache(layer_class_to_replicate=SlabLayer)
            for layer, filled in enumerate(prefilled.layers):
                self.cache.update(filled.keys[going], filled.values[going], layer)
            return
        places = [i for i, row in enumerate(self.rows) if row is None][: len(new)]
        more = len(new) - len(places)
        places += range(len(self.rows), len(self.rows) + more)
        self.rows += [None] * more
        self.mask = torch.nn.functional.pad(self.mask, (0, 0, 0, more))
        columns = max(mask.shape[1], self.mask.shape[1])
        self.mask, mask = (torch.nn.functional.pad(m, (columns - m.shape[1], 0)) for m in (self.mask, mask))
        at = torch.tensor(places, device=self.device)
        self.mask[at] = mask
        for slab, filled in zip(self.cache.layers, prefilled.layers, strict=True):
            assert isinstance(slab, SlabLayer)
            slab.add_places(more)
            slab.put(at, filled.keys[going], filled.values[going])
        for place, row in zip(places, new, strict=True):
            self.rows[place] = row

    def _tidy(self) -> None:
        """Take away places that are still empty, and columns that no row sees."""
        filled = [i for i, row in enumerate(self.rows) if row is not None]
        if not filled:
            self.rows = []
            return
        if len(filled) < len(self.rows):
            kept = torch.tensor(filled, dtype=torch.long, device=self.device)
            self.rows, self.mask = [self.rows[i] for i in filled], self.mask[kept]
            self.cache.batch_select_indices(kept)
        unseen = int(self.mask.any(0).int().argmax())
        self.mask = self.mask[:, unseen:]
        for slab in self.cache.layers if unseen else ():
            assert isinstance(slab, SlabLayer)
            slab.drop_left(unseen)
