"""Batched decoding with continuous refill: as rows finish, waiting prompts take their places."""

from __future__ import annotations

import inspect
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from llm_adapters.adapters import attach as operations
from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError
from llm_adapters.generate.memory import MOST_ROWS, is_out_of_memory, rows_that_fit
from llm_adapters.generate.prefill import Filled, Prefill, Prompt
from llm_adapters.generate.sampling import Sampling
from llm_adapters.generate.slab import SlabLayer
from llm_adapters.generate.stopping import ends_in

_REFILL_SHARE = 8  # prompts are taken in when an eighth of the rows is free: small prefills waste the machine


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
class _Row:
    """A prompt being completed; all of its tokens but the last are in the cache."""

    prompt: int
    given: Sequence[int]
    route: RowRoute
    limit: int
    stop_texts: Sequence[str]
    random: random.Random | None
    ids: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.given, *self.ids]

    @property
    def last(self) -> int:
        return self.ids[-1] if self.ids else self.given[-1]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int],
    stop_texts: Sequence[str] | Sequence[Sequence[str]] = (),
    tokenizer: Any = None,
    pad_id: int = 0,
    batch_size: int | None = None,
    routes: Sequence[RowRoute] | None = None,
    sampling: Sampling | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[Completion]:
    """Complete every prompt; each completion comes as soon as it is finished.

    What a prompt's completion is does not depend on the other prompts, their order or the batch size, up to the
    rounding of the model's dtype.

    Args:
        model: a causal language model, with or without adapters.
        prompts: token ids of each prompt, none empty.
        max_new_tokens: limit of new tokens, for all prompts or for each.
        stop_ids: tokens that end a completion.
        stop_texts: texts that end it, for all prompts or for each.
        tokenizer: whose ``decode`` shows the text; needed for ``stop_texts`` alone.
        pad_id: any valid token id; padded positions are masked.
        batch_size: prompts decoded together; None takes as many as fit into memory, 256 at most. When memory runs
            out after all, half as many go on.
        routes: the adapters of each prompt (see :func:`llm_adapters.route`); None leaves those in force.
        sampling: how to draw tokens; None takes the likeliest.
        on_token: called with the number of tokens of every step, for a progress bar.

    Raises:
        UserError: a prompt is empty, stop texts come without a tokenizer, or memory does not suffice for one prompt.
    """
    empty = [i for i, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise UserError(f"prompt {empty[0]} has no token", mend="give every prompt some text, or a BOS token")
    if stop_texts and tokenizer is None:
        raise UserError("stop texts need a tokenizer", mend="pass tokenizer=")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    common = all(isinstance(text, str) for text in stop_texts)
    texts: Sequence[Any] = [stop_texts] * len(prompts) if common else stop_texts
    rows = [
        _Row(i, prompt, route, limit, stops, sampling.random(i) if sampling else None)
        for i, (prompt, route, limit, stops) in enumerate(
            zip(prompts, routes or [None] * len(prompts), limits, texts, strict=True)
        )
    ]
    decoder = _Decoder(
        model, rows, pad_id=pad_id, stop_ids=frozenset(stop_ids), routed=routes is not None,
        batch_size=batch_size, sampling=sampling, tokenizer=tokenizer,
    )  # fmt: skip
    while decoder.waiting or decoder.live:
        before = decoder.written
        try:
            decoder.take_in()
            finished = decoder.step()
        except RuntimeError as failure:
            if not is_out_of_memory(failure):
                raise
            decoder.give_way(failure)
            continue
        yield from finished
        if on_token is not None:
            on_token(decoder.written - before)


class _Decoder:
    """The batch under way: its rows, their cache, and which of its columns each row sees.

    A finished row leaves an empty place (None), which goes on computing until a prompt takes it or the batch is
    made smaller: moving the cache for every finished row would cost more.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[_Row],
        *,
        pad_id: int,
        stop_ids: frozenset[int],
        routed: bool,
        batch_size: int | None,
        sampling: Sampling | None,
        tokenizer: Any,
    ) -> None:
        self.model, self.pad_id, self.stop_ids = model, pad_id, stop_ids
        self.routed, self.sampling, self.tokenizer = routed, sampling, tokenizer
        self.device = model.get_input_embeddings().weight.device
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        # One route after the other, longest first: groups and batches are alike, and if memory does not suffice
        # it shows early.
        first: dict[str, int] = {}
        self.waiting = deque(
            sorted(rows, key=lambda r: (first.setdefault(repr(r.route), r.prompt), -len(r.given), r.prompt))
        )
        self.columns = max((len(row.given) + row.limit for row in rows), default=0)
        prompts = [Prompt(row.given, row.route) for row in self.waiting]
        self.prefill = Prefill(self._forward, prompts, pad_id=pad_id, device=self.device)
        self.size, self.measured = batch_size or MOST_ROWS, batch_size is not None
        self.written = 0
        self._clear()

    def _clear(self) -> None:
        self.rows: list[_Row | None] = []
        self.cache = Cache(layer_class_to_replicate=SlabLayer)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)  # (B, columns of the cache)

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
        """Give empty places to waiting prompts; places that stay empty are taken away.

        A prompt stays first in line until it has its place, so that none is lost when memory runs out.
        """
        free = self.size - self.live
        if self.live and free < max(1, self.size // _REFILL_SHARE):
            return
        new: list[_Row] = []
        groups: list[Filled] = []
        while len(new) < min(self.size - self.live, len(self.waiting)):
            candidates = [self.waiting[i] for i in range(len(new), min(self.size - self.live, len(self.waiting)))]
            prompts = [Prompt(row.tokens, row.route) for row in candidates]
            count = self.prefill.group(prompts)
            groups.append(self.prefill(prompts[:count]))
            new += candidates[:count]
            if not self.measured:
                self._measure(groups[-1])
        for _ in new:
            self.waiting.popleft()
        if new:
            self._join(new, groups)
        self._tidy()

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
        mask = nn.functional.pad(self.mask, (0, 1), value=1)
        # An empty place computes along: on the route of a row that lives, so that it needs no group of its own.
        some = next(row for row in self.rows if row)
        logits = self._forward(ids, mask, self.cache, [(row or some).route for row in self.rows])
        self.mask = mask
        if self.sampling is None:
            chosen = logits.argmax(-1)
        else:
            numbers = [(row.random.random() if row and row.random else 0.0) for row in self.rows]
            chosen = self.sampling.choose(logits, torch.tensor(numbers, device=self.device))
        return self._write(chosen.tolist())

    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache, routes: Sequence[RowRoute]) -> Tensor:
        """Logits (B, V) after the last column."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with operations.route(self.model, routes) if self.routed else nullcontext():
            output = self.model(**inputs, past_key_values=cache, use_cache=True, **self.options)
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
                stopped = bool(row.stop_texts) and ends_in(row.stop_texts, row.ids, self.tokenizer.decode)
            if stopped or len(row.ids) == row.limit:
                finished.append(Completion(row.prompt, row.ids, stopped))
                self.rows[i] = None
        return finished

    def _join(self, new: list[_Row], groups: list[Filled]) -> None:
        """Put prefilled rows into empty places, their newest columns under those of the others."""
        if not self.live:
            self._clear()
        places = [i for i, row in enumerate(self.rows) if row is None][: len(new)]
        more = len(new) - len(places)
        places += range(len(self.rows), len(self.rows) + more)
        self.rows += [None] * more
        for place, row in zip(places, new, strict=True):
            self.rows[place] = row
        lengths = torch.tensor([len(row.tokens) - 1 for row in new], device=self.device)
        columns = max(int(lengths.max()), self.mask.shape[1])
        self.mask = nn.functional.pad(self.mask, (columns - self.mask.shape[1], 0, 0, more))
        seen = torch.arange(columns, 0, -1, device=self.device) <= lengths[:, None]
        self.mask[torch.tensor(places, device=self.device)] = seen.long()
        self._fill(places, groups, columns)

    def _fill(self, places: Sequence[int], groups: list[Filled], columns: int) -> None:
        """Write what was prefilled into the cache, one group after the other."""
        some = next((group.layers for group in groups if group.layers), None)
        if some and not self.cache.layers:
            self.cache = Cache(layers=[SlabLayer.empty(*states) for states in some])
        for i, slab in enumerate(self.cache.layers):
            assert isinstance(slab, SlabLayer)
            slab.reserve(len(self.rows), columns)
            free = iter(places)
            for group in groups:
                for member, tokens in enumerate(group.lengths):
                    place = next(free)
                    if tokens:
                        keys, values = group.layers[i]
                        slab.put(place, keys[member, :, :tokens], values[member, :, :tokens])

    def _tidy(self) -> None:
        """Take away places that are still empty, and columns that no row sees."""
        filled = [i for i, row in enumerate(self.rows) if row is not None]
        if len(filled) < len(self.rows):
            kept = torch.tensor(filled, dtype=torch.long, device=self.device)
            self.rows, self.mask = [self.rows[i] for i in filled], self.mask[kept]
            self.cache.batch_select_indices(kept)
        unseen = int(self.mask.any(0).int().argmax()) if self.mask.shape[1] else 0
        self.mask = self.mask[:, unseen:]
        for slab in self.cache.layers if unseen else ():
            assert isinstance(slab, SlabLayer)
            slab.drop_left(unseen)
