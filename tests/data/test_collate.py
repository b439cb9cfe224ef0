from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.collate import WINDOW, collate, length_sorted_batches
from llm_adapters.data.encoding import Encoded

EOS = 2
LONG = Encoded([5, 6, 7, EOS], [-100, 6, 7, EOS], truncated=False)
SHORT = Encoded([8, EOS], [8, EOS], truncated=False)
LENGTHS = st.lists(st.integers(1, 300), max_size=300)


def test_padding_on_the_right():
    batch = {name: tensor.tolist() for name, tensor in collate([LONG, SHORT], pad_id=EOS).items()}
    assert batch == {
        "input_ids": [[5, 6, 7, EOS], [8, EOS, EOS, EOS]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],  # the real EOS is seen, though padding is EOS too
        "position_ids": [[0, 1, 2, 3], [0, 1, 0, 0]],
        "labels": [[-100, 6, 7, EOS], [8, EOS, -100, -100]],
    }


def test_padding_on_the_left():
    batch = {name: tensor.tolist() for name, tensor in collate([LONG, SHORT], pad_id=0, side="left").items()}
    assert batch["input_ids"] == [[5, 6, 7, EOS], [0, 0, 8, EOS]]
    assert batch["attention_mask"] == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["position_ids"] == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert batch["labels"] == [[-100, 6, 7, EOS], [-100, -100, 8, EOS]]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1), st.sampled_from(["left", "right"]))
def test_every_row_can_be_read_back(rows, side):
    batch = collate([Encoded(row, row, truncated=False) for row in rows], pad_id=EOS, side=side)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    for row, ids, labels, seen in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        assert ids[seen].tolist() == labels[seen].tolist() == row
        assert (labels[~seen] == -100).all()


@given(LENGTHS, st.integers(1, 20), st.integers(), st.integers(0, 5))
def test_batches_hold_every_example_once(lengths, batch_size, seed, epoch):
    batches = length_sorted_batches(lengths, batch_size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert sum(len(batch) != batch_size for batch in batches) == (len(lengths) % batch_size != 0)
    assert batches == length_sorted_batches(lengths, batch_size, seed, epoch)


def test_within_one_window_no_order_needs_less_padding():
    lengths = [(7 * n) % 50 + 1 for n in range(WINDOW * 4)]
    batches = length_sorted_batches(lengths, 4, seed=0, epoch=0)
    ranges = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert [lengths[b[0]] for b in batches] != sorted(lengths[b[0]] for b in batches)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0), (-1, 0)])
def test_another_seed_or_epoch_gives_other_batches(seed, epoch):
    lengths = list(range(64))
    assert length_sorted_batches(lengths, 4, seed, epoch) != length_sorted_batches(lengths, 4, 0, 0)
