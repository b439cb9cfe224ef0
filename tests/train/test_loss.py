import torch
from torch.nn import functional as F

from llm_adapters.data.collate import collate
from llm_adapters.data.encoding import Encoded
from llm_adapters.train.loss import labelled_tokens, summed_loss
from tiny import tiny_model


def _row(ids: list[int], prompt: int) -> Encoded:
    return Encoded(ids, [-100] * prompt + ids[prompt:], truncated=False)


def test_loss_over_labelled_columns_is_the_textbook_loss() -> None:
    rows = [_row([3, 4, 5, 6, 7, 8], 2), _row([9, 10, 11, 12], 3), _row([13, 14, 15, 16, 17], 4)]
    batch = collate(rows, pad_id=0)
    for family in ("llama", "bloom", "gptj"):
        model = tiny_model(family)
        summed = float(summed_loss(model, batch).detach())
        expected = 0.0
        for row in rows:  # one row at a time, without padding
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
            expected += float(F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
        assert abs(summed - expected) < 1e-4 * abs(expected), family
    assert [labelled_tokens(row.labels) for row in rows] == [4, 1, 1]
