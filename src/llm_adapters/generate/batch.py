"""The batch under way: its rows, their cache, and which of its columns each row sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError
from llm_adapters.generate.inputs import accepted
from llm_adapters.generate.memory import MOST_ROWS, rows_that_fit
from llm_adapters.generate.prefill import Filled, Prefill, Prompt, hashable
from llm_adapters.generate.sampling import Sampling, likeliest
from llm_adapters.generate.slab import SlabLayer
from llm_adapters.model.prepacked import Prepacked
from llm_adapters.model.row_blocks import Reading, reading_by_blocks

_SHARE = 8  # prompts are taken in, and empty places away, when an eighth is empty: both are work for the whole batch


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt.

    Attributes:
        prompt: index of the prompt.
        ids: the new token ids, without the token that stopped it; a text that stopped it is still there.
        stopped: whether it ended by itself, and not at the limit.
    """

    prompt: int
    ids: list[int]
    stopped: bool


@dataclass(eq=False)
class Row:
    """A prompt being completed; all of its tokens but the last are in the cache.

    Attributes:
        ended: whether the new ids, the last of which was just added, end the completion.
    """

    prompt: int
    given: Sequence[int]
    route: RowRoute
    limit: int
    ended: Callable[[list[int]], bool]
    ids: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.given, *self.ids]

    @property
    def last(self) -> int:
        return self.ids[-1] if self.ids else self.given[-1]


class Batch:
    """Rows that are decoded together, and those that wait.

    A finished row leaves an empty place (None), which goes on computing until there are enough of them: moving the
    cache for every finished row would cost more. Then the others move up, and prompts that wait come behind them, so
    that rows which have written alike stand together.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row],
        *,
        pad_id: int,
        stop_ids: frozenset[int],
        routed: bool,
        batch_size: int | None,
        sampling: Sampling | None,
    ) -> None:
        self.model, self.pad_id, self.stop_ids = model, pad_id, stop_ids
        self.routed, self.sampling = routed, sampling
        self.device = model.get_input_embeddings().weight.device
        known = accepted(model)
        self.takes_positions = "position_ids" in known
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.prepacked = Prepacked(model)
        self.prefill = Prefill(
            self._forward, [Prompt(row.given, row.route) for row in rows], pad_id=pad_id, device=self.device
        )
        # Alike after alike, longest first: groups and batches waste little, and if memory does not suffice it shows
        # early.
        self.waiting = deque(sorted(rows, key=self._order(rows)))
        self.columns = max((len(row.given) + row.limit for row in rows), default=0)
        self.size, self.measured = batch_size or MOST_ROWS, batch_size is not None
        self.written = 0
        self._clear()

    def _order(self, rows: Sequence[Row]) -> Callable[[Row], tuple[int, int, int, int]]:
        """By route, by what is computed once, by length; routes and beginnings in the order in which they come."""
        routes: dict[object, int] = {}
        keys: dict[object, int] = {}
        for row in rows:
            routes.setdefault(hashable(row.route), row.prompt)
            keys.setdefault(self.prefill.key(Prompt(row.given, row.route)), row.prompt)

        def place(row: Row) -> tuple[int, int, int, int]:
            key = self.prefill.key(Prompt(row.given, row.route))
            return routes[hashable(row.route)], keys[key], -len(row.given), row.prompt

        return place

    def _clear(self) -> None:
        self.rows: list[Row | None] = []
        self.cache = Cache(layer_class_to_replicate=SlabLayer)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)  # (B, columns of the cache)
        self.beginnings: list[tuple[object, int]] = []  # of each place: what it shares, and how many tokens
        self.reading: Reading | None = None

    @property
    def live(self) -> int:
        """Rows that still write."""
        return sum(row is not None for row in self.rows)

    def give_way(self, failure: RuntimeError) -> None:
        """Start again with half the rows; what is written stays written.

        Raises:
            UserError: there was one row only.
        """
        rows = [row for row in self.rows if row is not None]
        if self.size == 1:
            mend = "shorter prompts, or a smaller dtype"
            raise UserError("memory does not suffice for one prompt", mend=mend) from failure
        self.size, self.measured = max(1, (min(self.size, len(self.rows)) or self.size) // 2), True
        self.waiting.extendleft(reversed(rows))
        self._clear()

    @torch.inference_mode()
    def take_in(self) -> None:
        """Take places away when many are empty, for prompts that wait or for none.

        A prompt stays first in line until it has its place, so that none is lost when memory runs out.
        """
        if self.waiting and (not self.live or self.size - self.live >= max(1, self.size // _SHARE)):
            self._refill()
        self._tidy()

    def _refill(self) -> None:
        if not self.live:
            self._clear()
        new: list[Row] = []
        groups: list[Filled] = []
        while len(new) < min(self.size - self.live, len(self.waiting)):
            last = min(self.size - self.live, len(self.waiting)) if self.measured else len(new) + 1
            candidates = [self.waiting[i] for i in range(len(new), last)]
            prompts = [Prompt(row.tokens, row.route) for row in candidates]
            count = self.prefill.group(prompts)
            groups.append(self.prefill(prompts[:count]))
            new += candidates[:count]
            if not self.measured:
                self._measure(groups[-1])
        self._move_up()
        for _ in new:
            self.waiting.popleft()
        self._join(new, groups)

    def _measure(self, filled: Filled) -> None:
        """The batch size, from the memory that the first prompts take."""
        if filled.layers:
            vocabulary = self.model.get_output_embeddings().weight.shape[0]
            self.size = rows_that_fit(filled.bytes_a_token, self.columns, vocabulary, self.device)
            self.measured = True

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Write one more token in every row; gives the rows that are finished by it."""
        ids = torch.tensor([[row.last if row else self.pad_id] for row in self.rows], device=self.device)
        # An empty place computes along, without another position, of which a model may have no more.
        written = torch.tensor([[row is not None] for row in self.rows], device=self.device)
        mask = torch.cat([self.mask, written.long()], dim=1)
        with reading_by_blocks(self.model, self.reading, mask.shape[1]):
            logits = self._forward(ids, mask, self.cache, self._routes())
        self.mask = mask
        if self.sampling is None:
            chosen = likeliest(logits)
        else:
            numbers = [self.sampling.number(row.prompt, len(row.ids)) if row else 0.0 for row in self.rows]
            chosen = self.sampling.choose(logits, torch.tensor(numbers, device=self.device))
        return self._write(chosen.tolist())

    def _routes(self) -> list[RowRoute]:
        """The route of each row; an empty place goes with the row before it, so that it needs no group of its own."""
        route = next(row for row in self.rows if row).route
        return [route := row.route if row else route for row in self.rows]

    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache, routes: Sequence[RowRoute]) -> Tensor:
        """Logits (B, V) after the last column."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self.prepacked(), operations.route(self.model, routes) if self.routed else nullcontext():
            output = self.model(**inputs, past_key_values=cache, use_cache=True, **self.options)
        if not cache.layers or any(layer.get_seq_length() != mask.shape[1] for layer in cache.layers):
            raise UserError(
                "this model keeps no key–value cache of all its tokens, which decoding in batches goes on from",
                mend="a model with attention in every layer; or transformers' own generate, one prompt at a time",
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _write(self, tokens: Sequence[int]) -> list[Completion]:
        """Append tokens to their rows; gives what is finished, whose places become empty."""
        finished = []
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if row is None:
                continue
            self.written += 1
            stopped = token in self.stop_ids
            if not stopped:
                row.ids.append(token)
                stopped = row.ended(row.ids)
            if stopped or len(row.ids) == row.limit:
                finished.append(Completion(row.prompt, row.ids, stopped))
                self.rows[i] = None
        return finished

    def _join(self, new: list[Row], groups: list[Filled]) -> None:
        """Put prefilled rows behind the others, their newest columns under theirs."""
        places = range(len(self.rows), len(self.rows) + len(new))
        self.rows += new
        self.beginnings += [self.prefill.beginning(Prompt(row.tokens, row.route)) for row in new]
        lengths = torch.tensor([len(row.tokens) - 1 for row in new], device=self.device)
        columns = max(int(lengths.max()), self.mask.shape[1])
        seen = torch.arange(columns, 0, -1, device=self.device) <= lengths[:, None]
        self.mask = torch.cat([nn.functional.pad(self.mask, (columns - self.mask.shape[1], 0)), seen.long()])
        self._fill(places, groups, columns)

    def _fill(self, places: Sequence[int], groups: list[Filled], columns: int) -> None:
        """Write what was prefilled into the cache, one group after the other."""
        some = next((group.layers for group in groups if group.layers), None)
        if some and not self.cache.layers:
            self.cache = Cache(layers=[SlabLayer.empty(*states) for states in some])
        for i, slab in enumerate(self._slabs()):
            slab.reserve(len(self.rows), columns)
            free = iter(places)
            for group in groups:
                for member, tokens in enumerate(group.lengths):
                    place = next(free)
                    if tokens:
                        keys, values = group.layers[i]
                        slab.put(place, keys[member, :, :tokens], values[member, :, :tokens])

    def _tidy(self) -> None:
        """Take away places, when many are empty, and columns that no row sees."""
        empty = len(self.rows) - self.live
        if empty and empty * _SHARE >= len(self.rows):
            self._move_up()
        unseen = int(self.mask.any(0).int().argmax()) if self.mask.numel() else 0
        self.mask = self.mask[:, unseen:]
        for slab in self._slabs() if unseen else ():
            slab.drop_left(unseen)
        # Where a call costs more than what it reads, on a GPU, the model's own attention is best.
        layer = next(self._slabs(), None) if self.device.type == "cpu" else None
        self.reading = Reading.of(self._firsts(), self.beginnings, layer.bytes_a_column) if layer else None

    def _firsts(self) -> list[int]:
        """The first column that each row sees; the one to come, where it sees none."""
        columns = self.mask.shape[1]
        places = torch.arange(columns, device=self.device).expand_as(self.mask)
        return places.where(self.mask > 0, columns).amin(1).tolist() if columns else [0] * len(self.rows)

    def _move_up(self) -> None:
        """Take all empty places away."""
        filled = [(i, row) for i, row in enumerate(self.rows) if row is not None]
        if len(filled) == len(self.rows):
            return
        places = [i for i, _ in filled]
        for slab in self._slabs():
            slab.keep(places, [len(row.tokens) - 1 for _, row in filled])
        self.rows, self.mask = [row for _, row in filled], self.mask[places]
        self.beginnings = [self.beginnings[place] for place in places]

    def _slabs(self) -> Iterator[SlabLayer]:
        for slab in self.cache.layers:
            assert isinstance(slab, SlabLayer)
            yield slab
