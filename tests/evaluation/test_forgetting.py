"""Cross-entropy on plain text: against torch's own, and what an adapter changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import llm_adapters as la
from letters import letter_tokenizer
from llm_adapters.errors import DataError
from llm_adapters.evaluation.forgetting import PIECE, measure_forgetting, plain_text
from tiny import tiny_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text(("what is the sum of these " * 40)[: 3 * PIECE + 20])
    return path


def test_it_is_torchs_cross_entropy_over_whole_pieces(text: Path) -> None:
    model, tokenizer = tiny_model("llama", max_position_embeddings=512), letter_tokenizer()
    adapter = la.attach(model, la.method("lora", rank=4), "tuned")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = measure_forgetting(model, tokenizer, str(text), "tuned")
    ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])
    pieces = ids[: len(ids) // PIECE * PIECE].reshape(-1, PIECE)
    for route, value in ((None, found.before), ("tuned", found.after)):
        with torch.no_grad(), la.route(model, [route] * len(pieces)):
            logits = model(pieces).logits[:, :-1]
        expected = F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
        assert value == pytest.approx(float(expected), rel=1e-5)
    assert found.tokens == len(pieces) * (PIECE - 1)
    assert found.difference == pytest.approx(found.after - found.before)
    assert found.low < found.difference < found.high
    assert found.text == "plain.txt"


def test_an_adapter_that_does_nothing_forgets_nothing(text: Path) -> None:
    model = tiny_model("llama", max_position_embeddings=512)
    la.attach(model, la.method("lora"), "tuned")
    found = measure_forgetting(model, letter_tokenizer(), str(text), "tuned")
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_text_that_is_shipped_is_some_pages_long() -> None:
    assert 1000 < len(plain_text("builtin").split()) < 1500


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="builtin"):
        plain_text(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        plain_text(str(tmp_path / "empty.txt"))
