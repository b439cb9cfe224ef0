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
        ("0.5", "1/2", "correct", "0.5"),
        ("The answer is 1/2.", "0.5", "correct", "0.5"),
        ("The answer is 2.5", "2 1/2", "correct", "2.5"),
        ("so it is 5 dollars", "$5", "correct", "5"),
        ("The answer is 12", "12%", "correct", "12"),
        ("The answer is 1/3/2020", "1/3/2020", "correct", "1/3/2020"),
        ("The answer is Paris, the capital", "Paris", "correct", "Paris, the capital"),
        ("Paris. It is the capital.", "Paris", "correct", "Paris. It is the capital"),
        ("Paris (in France)", "paris", "correct", "Paris (in France)"),
        ("**Answer:** `Paris`", "Paris", "correct", "Paris"),
        ("It is \\boxed{\\text{Paris}} then", "Paris", "correct", "Paris"),
        ("The answer should be Paris", "Paris", "correct", "Paris"),
        ("Ans: Paris", "Paris", "correct", "Paris"),
        ("The answer is Paris, Rome", "Paris", "wrong", "Paris, Rome"),
        ("The answer is Paris. No, Rome", "Paris", "wrong", "Paris. No, Rome"),
        ("The answer is Paris or Rome", "Paris", "wrong", "Paris or Rome"),
        ("The answer is Parisians, the people", "Paris", "wrong", "Parisians, the people"),
        ("The answer is not Paris", "Paris", "wrong", "not Paris"),
        ("The answer is " + "long " * 900, "long " * 900, "correct", ("long " * 900).strip()),
    ],
)
def test_known_cases(completion: str, gold: str, status: str, answer: str | None) -> None:
    assert judge(completion, gold) == (status, answer)


@given(st.text(), st.text(min_size=1))
def test_no_text_crashes(completion: str, gold: str) -> None:
    assert judge(completion, gold).status in ("correct", "wrong", "unparsed")
