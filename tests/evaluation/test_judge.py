import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.judge import judge


@pytest.mark.parametrize(
    ("completion", "gold", "status", "answer"),
    [
        ("3 + 4 = 7\nThe answer is 7.", "7", "correct", "7"),
        ("3 + 4 = 8\nThe answer is 8.", "7", "wrong", "8"),
        ("I do not know.", "7", "unparsed", None),
        ("The answer is 1,200.", "1200", "correct", "1200"),
        ("so x = 2.0005", "2", "correct", "2.0005"),
        ("The answer is Paris.", "paris", "correct", "Paris"),
        ("Paris", "Paris", "correct", "Paris"),
        ("Rome", "Paris", "wrong", "Rome"),
        ("It may be\nRome or Paris", "Paris", "unparsed", None),
        ("", "Paris", "unparsed", None),
    ],
)
def test_known_cases(completion: str, gold: str, status: str, answer: str | None) -> None:
    assert judge(completion, gold) == (status, answer)


@given(st.text(), st.text(min_size=1))
def test_no_text_crashes(completion: str, gold: str) -> None:
    assert judge(completion, gold).status in ("correct", "wrong", "unparsed")
