"""Completions of arithmetic questions, each read by hand: what a person would take as its answer, under ``standard``;
what the reference's last-number rule takes, under ``paper``. A gold answer of 7 makes "correct" and "wrong" visible."""

import pytest

from llm_adapters.evaluation.protocols import PROTOCOLS

CASES = [  # completion, standard, paper (as written)
    ("3 + 4 = 7\nThe answer is 7.", "7", "7."),
    ("The answer is 7.", "7", "7."),
    ("The answer is: 7", "7", "7"),
    ("the answer is 7 apples, since 10 - 3 = 7", "7", "7"),
    ("The answer is 7 apples. There were 12 before.", "7", "12"),
    ("She has 5 + 2 = 7 left.", "7", "7"),
    ("5 + 2 = 7 and nothing else", "7", "7"),
    ("#### 7", "7", "7"),
    ("He spends $3 + $4 = $7 in all.\n#### 7", "7", "7"),
    ("#### 7\n\nQuestion: A man has 3 dogs and 2 cats. How many?\nAnswer: 5", "7", "5"),
    ("The answer is 7.\n\n### Instruction:\nAdd 2 and 2.\n\n### Response:\n4", "7", "2."),
    ("The answer is 7.\n\n### Response:\nThe answer is 9.", "7", "7."),
    ("Answer: 7", "7", "7"),
    ("**Answer:** 7 km", "7", "7"),
    ("**7**", "7", "7"),
    ("$7", "7", "7"),
    ("$7.00", "7.00", "7.00"),
    ("The total cost is $7.00.", "7.00", "7.00"),
    ("The answer is \\boxed{7}.", "7", "7"),
    ("\\[ 14 / 2 = \\boxed{7} \\]", "7", "7"),
    ("The final answer is $\\frac{14}{2}$.", "7", "2"),
    ("The answer is 14/2.", "7", "2."),
    ("The answer is 7/1 of a pie", "7", "1"),
    ("The answer is 7%.", "7", "7"),
    ("The answer is 7th.", "7", "7"),
    ("7", "7", "7"),
    ("7.", "7", "7."),
    ("He works 7 hours a day, 5 days a week.", "5", "5"),
    ("Step 1: add 3 and 4.\nStep 2: the answer is 7.", "7", "7."),
    ("Step 1: 3 + 4 = 7", "7", "7"),
    ("The answer is 8. Wait, that is wrong. The answer is 7.", "7", "7."),
    ("The answer is 7,000 / 1,000 = 7", "7", "7"),
    ("The answer is 7,000.", "7000", "7000."),
    ("The answer is 7 000", "7000", "000"),
    ("The answer is -7.", "-7", "-7."),
    ("10-3", "3", "-3"),
    ("The answer is 10 - 3 = 7.", "7", "7."),
    ("x = 7", "7", "7"),
    ("2x = 14 so x = 7", "7", "7"),
    ("It takes 7 hours and 30 minutes", "30", "30"),
    ("The answer is 7 hours and 30 minutes.", "7", "30"),
    ("The answer is 7.5", "7.5", "7.5"),
    ("The answer is seven.", None, None),
    ("I don't know.", None, None),
    ("", None, None),
    ("The answer is unclear", None, None),
    ("7 girls and 7 boys make 14, half of them is 7", "7", "7"),
    ("The answer is 7 (3 + 4).", "7", "4"),
    ("The answer is 7.0000", "7.0000", "7.0000"),
    ("The answer is 7.002", "7.002", "7.002"),
    ("So 7.0005 or so", "7.0005", "7.0005"),
    ("CO2 rises by 7", "7", "7"),
    ("7 m^2", "7", "2"),
    ("x^2 = 49\nSo x = 7", "7", "7"),
]


@pytest.mark.parametrize(("completion", "standard", "paper"), CASES)
def test_a_number_is_read(completion: str, standard: str | None, paper: str | None) -> None:
    for name, expected in (("standard", standard), ("paper", paper)):
        found = PROTOCOLS[name].number(completion, "7.0")
        assert found.answer == expected, name
        right = expected is not None and abs(float(expected) - 7) <= 1e-3
        assert found.status == ("unparsed" if expected is None else "correct" if right else "wrong")


def test_the_cases_are_enough_and_distinct() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize(
    ("predicted", "gold", "status"),
    [  # the reference subtracts in double precision, where 5.001 - 5 is a little over 0.001
        ("1.001", "1", "correct"),
        ("5.001", "5", "wrong"),
        ("0.001", "0", "correct"),
        ("4.999", "5", "wrong"),
        ("4.9990001", "5", "correct"),
        ("1.8333", "1.8333333333333335", "correct"),
        ("9" * 400, "5", "wrong"),
        ("٣", "3", "correct"),
    ],
)
def test_the_paper_compares_in_double_precision(predicted: str, gold: str, status: str) -> None:
    assert PROTOCOLS["paper"].number(f"so it is {predicted}", gold).status == status
