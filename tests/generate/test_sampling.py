from collections import Counter

import pytest
import torch

from llm_adapters.errors import UserError
from llm_adapters.generate import Sampling, generate
from llm_adapters.generate.sampling import likeliest
from tiny import tiny_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18], [19, 20]]


def _texts(prompts: list[list[int]], batch_size: int, seed: int = 0) -> list[list[int]]:
    sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=seed)
    done = generate(
        tiny_model("llama"), prompts, max_new_tokens=8, stop_ids={3}, batch_size=batch_size, sampling=sampling
    )
    return [c.ids for c in sorted(done, key=lambda c: c.prompt)]


def test_a_prompt_draws_the_same_in_any_batch_and_another_with_another_seed() -> None:
    alone = _texts(PROMPTS, 1)
    assert _texts(PROMPTS, 2) == _texts(PROMPTS, 5) == alone
    assert _texts(PROMPTS, 5, seed=1) != alone


@pytest.mark.parametrize("vocabulary", [1, 97, 128, 512])
def test_the_likeliest_is_the_first_of_the_largest(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 5, (40, vocabulary), generator=generator).float()  # many are equal
    logits = torch.cat([coarse, torch.randn(40, vocabulary, generator=generator), torch.full((1, vocabulary), -9.0)])
    first = [row.index(max(row)) for row in logits.tolist()]
    assert likeliest(logits).tolist() == first
    assert likeliest(torch.stack([logits, logits], 1)[:, -1]).tolist() == first  # the last of several columns
    assert likeliest(logits.bfloat16()).tolist() == [row.index(max(row)) for row in logits.bfloat16().tolist()]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.2, 0.3, 0.4]),
        (Sampling(temperature=0.5), [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        (Sampling(top_k=2), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(top_p=0.5), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(top_p=0.39), [0, 0, 0, 1]),
        (Sampling(top_k=3, top_p=0.75), [0, 0, 3 / 7, 4 / 7]),
        (Sampling(top_k=99), [0.1, 0.2, 0.3, 0.4]),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    numbers = (torch.arange(3000) + 0.5) / 3000
    drawn = Counter(sampling.choose(logits.expand(3000, 4), numbers).tolist())
    assert [drawn[i] / 3000 for i in range(4)] == pytest.approx(expected, abs=1e-3)


def test_the_ends_of_the_unit_interval_stay_inside() -> None:
    logits = torch.tensor([[-9e9, 0.0, -9e9], [-9e9, 0.0, -9e9]])
    for sampling in (Sampling(), Sampling(top_p=0.5), Sampling(top_k=2)):
        assert sampling.choose(logits, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
