import pytest

from llm_adapters.train.schedule import factor


def test_linear_rises_over_the_warm_up_and_falls_to_zero() -> None:
    values = [factor(step, steps=10, warmup=4, schedule="linear") for step in range(11)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert factor(50, steps=100, warmup=0, schedule="cosine") == pytest.approx(0.5)
    assert factor(100, steps=100, warmup=0, schedule="cosine") == pytest.approx(0.0)


def test_a_warm_up_longer_than_the_run_still_reaches_the_peak() -> None:
    assert factor(4, steps=5, warmup=100, schedule="constant") == 1.0
