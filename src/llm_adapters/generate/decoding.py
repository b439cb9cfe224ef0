"""Batched decoding with continuous refill: as rows finish, waiting prompts take their places."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from llm_adapters.adapters.routing import RowRoute
from llm_adapters.errors import UserError
from llm_adapters.generate.batch import Batch, Completion, Row
from llm_adapters.generate.inputs import context_length
from llm_adapters.generate.sampling import Sampling
from llm_adapters.generate.stopping import StopTexts
from llm_adapters.model.memory import is_out_of_memory

__all__ = ["Completion", "generate"]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int],
    stop_texts: Sequence[str] = (),
    ended: Sequence[Callable[[list[int]], bool]] | None = None,
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
        stop_texts: texts that end it.
        ended: of each prompt, in the place of ``stop_texts``: whether its new ids, the last of which was just added,
            end its completion (see :class:`llm_adapters.generate.stopping.StopTexts`).
        tokenizer: of the model; needed for ``stop_texts`` alone.
        pad_id: any valid token id; padded positions are masked.
        batch_size: prompts decoded together; None takes as many as fit into memory, 256 at most. When memory runs
            out after all, half as many go on.
        routes: the adapters of each prompt (see :func:`llm_adapters.route`); None leaves those in force.
        sampling: how to draw tokens; None takes the likeliest.
        on_token: called with the number of tokens of every step, for a progress bar.

    Raises:
        UserError: a prompt is empty or leaves no room for its completion, a limit or the batch size is below 1, lists
            are not as long as the prompts, stop texts come without a tokenizer, the model has no key–value cache, or
            memory does not suffice for one prompt.
    """
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise UserError(f"prompt {empty[0]} has no token", mend="give every prompt some text, or a BOS token")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}", mend="1 or more, or None for as many as fit")
    for what, given in (("max_new_tokens", max_new_tokens), ("routes", routes), ("ended", ended)):
        if isinstance(given, Sequence) and len(given) != len(prompts):
            raise UserError(f"{what} has {len(given)} entries for {len(prompts)} prompts", mend="one for each prompt")
    if stop_texts and tokenizer is None:
        raise UserError("stop texts need a tokenizer", mend="pass tokenizer=")
    limits = list(max_new_tokens) if isinstance(max_new_tokens, Sequence) else [int(max_new_tokens)] * len(prompts)
    if any(limit < 1 for limit in limits):
        raise UserError(f"max_new_tokens is {min(limits)}", mend="1 or more")
    room = context_length(model)
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if room is not None and len(prompt) + limit > room:
            raise UserError(
                f"prompt {i} has {len(prompt):,} tokens, and with {limit} new ones it is longer than the {room:,} that "
                "the model takes",
                mend="a shorter prompt, or a smaller max_new_tokens",
            )
    ends = ended or [StopTexts(stop_texts, tokenizer).reached] * len(prompts)
    rows = [
        Row(i, prompt, route, limit, end)
        for i, (prompt, route, limit, end) in enumerate(
            zip(prompts, routes or [None] * len(prompts), limits, ends, strict=True)
        )
    ]
    batch = Batch(
        model, rows, pad_id=pad_id, stop_ids=frozenset(stop_ids), routed=routes is not None, batch_size=batch_size,
        sampling=sampling,
    )  # fmt: skip
    while batch.waiting or batch.live:
        before = batch.written
        try:
            batch.take_in()
            finished = batch.step()
        except RuntimeError as failure:
            if not is_out_of_memory(failure):
                raise
            batch.give_way(failure)
            continue
        yield from finished
        if on_token is not None:
            on_token(batch.written - before)
