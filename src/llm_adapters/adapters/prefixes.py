"""From the prefixes and prompts of a stack of adapters to what every row's attention gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.forms import KeyValues, VirtualTokens
from llm_adapters.adapters.forms.key_values import KeyValue
from llm_adapters.adapters.routing import LayerPrefix, Pass, Stack


@dataclass(frozen=True, eq=False)
class StackPrefix:
    """What one stack of adapters puts before the input.

    Attributes:
        length: positions that it takes, P.
        layers: keys and values (≤ P, H, d) by layer.
    """

    length: int
    layers: dict[int, KeyValue]


VirtualPass = Callable[[StackPrefix, Tensor], Mapping[int, KeyValue]]


def stack_prefix(adapters: Sequence[Adapter], virtual_pass: VirtualPass) -> StackPrefix:
    """Prefixes in the order of the adapters, then the keys and values of their virtual tokens.

    Args:
        adapters: the adapters of one stack.
        virtual_pass: runs embeddings (P, D) through the model behind a prefix; gives their keys and values.
    """
    parts = [part for adapter in adapters for part in adapter.parts()]
    prefix = StackPrefix(0, {})
    for part in parts:
        if isinstance(part, KeyValues):
            prefix = _joined(prefix, part(), part.tokens)
    tables = [part() for part in parts if isinstance(part, VirtualTokens)]
    if tables:
        embeddings = torch.cat(tables)
        prefix = _joined(prefix, virtual_pass(prefix, embeddings), embeddings.shape[0])
    return prefix


def _joined(prefix: StackPrefix, more: Mapping[int, KeyValue], length: int) -> StackPrefix:
    layers = dict(prefix.layers)
    for layer, new in more.items():
        old = layers.get(layer)
        layers[layer] = new if old is None else KeyValue(*(torch.cat(pair) for pair in zip(old, new, strict=True)))
    return StackPrefix(prefix.length + length, layers)


def join_rows(
    current: Pass, prefixes: Mapping[Stack, StackPrefix], device: torch.device
) -> tuple[dict[int, LayerPrefix], Tensor]:
    """Spread the prefixes over the rows of a batch.

    Returns:
        by layer, keys and values of every row; and the shift (B or 1, 1) that positions take behind them.
    """
    stacks = list(current.stacks)
    if len(stacks) == 1:
        only = prefixes[stacks[0]]
        shift = torch.full((1, 1), only.length, device=device)
        return {layer: _for_all(kv, current.batch) for layer, kv in only.layers.items()}, shift
    owner = torch.zeros(current.batch, dtype=torch.long, device=device)
    for i, rows in enumerate(current.stacks.values()):
        owner[rows] = i
    shift = torch.tensor([prefixes[stack].length for stack in stacks], device=device)[owner][:, None]
    layers = {layer for stack in stacks for layer in prefixes[stack].layers}
    seen: dict[tuple[int, ...], Tensor] = {}
    by_row = {layer: _by_row([prefixes[s].layers.get(layer) for s in stacks], owner, seen) for layer in sorted(layers)}
    return by_row, shift


def join_spans(
    current: Pass, prefixes: Mapping[Stack, StackPrefix], device: torch.device
) -> tuple[dict[int, LayerPrefix], Tensor]:
    """Put the prefixes of all stacks one after the other before the one row; each stack sees its own.

    Returns:
        by layer, their keys and values; and the shift (1, T) that positions take behind them.
    """
    assert current.spans is not None
    shift = [torch.full((length,), prefixes[stack].length, device=device) for stack, length in current.spans.spans]
    layers = sorted({layer for prefix in prefixes.values() for layer in prefix.layers})
    found = {layer: _side_by_side({s: prefixes[s].layers.get(layer) for s in current.stacks}) for layer in layers}
    return found, torch.cat(shift)[None]


def _side_by_side(choices: Mapping[Stack, KeyValue | None]) -> LayerPrefix:
    there = {stack: kv for stack, kv in choices.items() if kv is not None}
    like = next(iter(there.values()))
    seen: dict[Stack, tuple[int, int]] = {}
    end = 0
    for stack, kv in there.items():
        seen[stack] = end, end + kv.keys.shape[0]
        end = seen[stack][1]
    keys, values = (torch.cat([kv[i].to(like[i]) for kv in there.values()]).transpose(0, 1)[None] for i in (0, 1))
    return LayerPrefix(keys, values, None, seen)


def _for_all(kv: KeyValue, batch: int) -> LayerPrefix:
    keys, values = (tensor.transpose(0, 1)[None].expand(batch, -1, -1, -1) for tensor in kv)
    return LayerPrefix(keys, values, None)


def _by_row(choices: Sequence[KeyValue | None], owner: Tensor, seen: dict[tuple[int, ...], Tensor]) -> LayerPrefix:
    """Right-aligned, so that the virtual token next to the input stands last in every row.

    ``seen`` keeps what is visible by lengths: layers that agree share it, and with it one widened mask.
    """
    some = next(kv for kv in choices if kv is not None)
    lengths = [0 if kv is None else kv.keys.shape[0] for kv in choices]
    longest = max(lengths)

    def padded(kv: KeyValue | None, index: int) -> Tensor:
        like = some[index]
        missing = like.new_zeros(longest - (0 if kv is None else kv[index].shape[0]), *like.shape[1:])
        return missing if kv is None else torch.cat([missing, kv[index].to(like)])

    keys, values = (torch.stack([padded(kv, i) for kv in choices])[owner].transpose(1, 2) for i in (0, 1))
    if tuple(lengths) not in seen:
        slots = torch.arange(longest, device=owner.device)
        first = longest - torch.tensor(lengths, device=owner.device)[owner]
        seen[tuple(lengths)] = slots[None] >= first[:, None]
    return LayerPrefix(keys, values, seen[tuple(lengths)])
