"""The cache of decoding: what it answers is what a cache that copies everything would answer."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_adapters.generate.slab import SlabLayer

ROWS, HEADS, KEY, VALUE = 4, 2, 6, 5


def _states(columns: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, HEADS, columns, KEY), torch.randn(rows, HEADS, columns, VALUE)


def _joined(*pieces: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True)]


def test_a_prefix_stands_before_what_is_in_use_without_a_copy() -> None:
    slab, prefix, tokens = SlabLayer(), _states(7), [_states(3)]
    slab.update(*tokens[0])
    places = set()
    for step in range(6):
        tokens.append(_states(1))
        slab.update(*tokens[-1])
        if step == 3:
            slab.drop_left(2)  # what no row sees any more gives way to the prefix
        found = slab.behind(*prefix)
        seen = [states[:, :, 2 if step >= 3 else 0 :] for states in _joined(*tokens)]
        for ours, expected in zip(found, _joined(prefix, (seen[0], seen[1])), strict=True):
            assert torch.equal(ours, expected)
        assert torch.equal(slab.keys, seen[0])  # the prefix is not part of it
        places.add(found[0].untyped_storage().data_ptr())
    assert len(places) == 1
    longer = _states(30)
    assert torch.equal(slab.behind(*longer)[1], torch.cat([longer[1], slab.values], dim=2))


def test_rows_come_and_go_beside_a_prefix() -> None:
    slab, prefix, first = SlabLayer(), _states(7), _states(3)
    slab.update(*first)
    slab.behind(*prefix)
    slab.keep([0, 2], [3, 3])
    for states in slab._slabs:
        states[slab.count :] = float("nan")  # what memory may hold where no row is
    assert torch.equal(slab.keys, first[0][[0, 2]])
    slab.reserve(ROWS, 9)  # a longer row comes: the columns on its left have been a margin
    assert torch.isfinite(slab.keys).all()
    assert slab.keys.shape == (ROWS, HEADS, 9, KEY)
    assert torch.equal(slab.keys[:2, :, -3:], first[0][[0, 2]])
    for ours, theirs in zip(slab.behind(*prefix), prefix, strict=True):
        assert torch.equal(ours[:, :, :7], theirs)
    assert torch.equal(slab.keys[:2, :, -3:], first[0][[0, 2]])


def test_kept_rows_move_in_one_copy_where_calls_are_dear() -> None:
    """The shapes alone: the meta device has no numbers, and no other that is not a CPU is at hand."""
    with torch.device("meta"):
        slab = SlabLayer()
        slab.update(*_states(5))
        slab.keep([1, 3], [5, 2])
    assert slab.keys.shape == (2, HEADS, 5, KEY)
