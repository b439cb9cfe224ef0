import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.answers import Extracted, extract_number, same_number, whole_number

STYLES = [
    "The answer is {}.",
    "the final ANSWER is: {}",
    "**The answer is {}**",
    "The answer is **{}**.",
    "Answer: ${}",
    "The answer is \\boxed{{{}}}.",
    "$\\boxed{{{} \\text{{ cm}}}}$ because 7 > 6",
    "The answer is:\n\n{}\n",
    "The answer is €{} in all. So 99 is wrong.",
    "The answer is {}% of 8.",
    "The answer is {} apples, not 12",
    "The answer is 7.\nNo, the answer is {}.",
    "So x = 12.\n#### {}",
]


@pytest.mark.parametrize("style", STYLES)
@given(value=st.integers(-(10**9), 10**9), decimals=st.sampled_from([0, 2]), commas=st.booleans())
def test_an_anchored_number_is_read_in_every_style(style, value, decimals, commas):
    number = Decimal(value).scaleb(-decimals)
    text = f"We have 3 * 4 = 12.\n{style.format(f'{number:,f}' if commas else f'{number:f}')}"
    assert extract_number(text) == Extracted(number, anchored=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 3 + 4 = 7.", "7"),
        ("The answer is 7 = 3 + 4.", "7"),
        ("The answer is x = 5 apples.", "5"),
        ("The answer is 40 (since 5 * 8 = 40 and 6 * 8 = 48)", "40"),
        ("The answer is 1,000 + 2,000 = 3,000 dollars.", "3000"),
        ("The answer is 3/4.", "0.75"),
        ("The answer is 2 1/2 cups.", "2.5"),
        (r"The answer is \frac{3}{4}.", "0.75"),
        (r"The answer is $-\frac{1}{2}$.", "-0.5"),
        (r"The answer is 1\frac{1}{2}.", "1.5"),
        (r"The answer is 12{,}500.", "12500"),
        ("The answer is -$5.", "-5"),
        ("The answer is $-5.50.", "-5.50"),
        ("The answer is −5.", "-5"),
        ("The answer is Rs.500", "500"),
        ("The answer is USD 20", "20"),
        ("The answer is .5", "0.5"),
        ("The answer is 5.0.", "5.0"),
        ("The answer is 3 and 9 more.", "3"),
        ("The answer is 5. It is not 6.", "5"),
        ("The answer is 25 cm^2.", "25"),
        ("the answer is clear. The answer is 4. The answer is easy.", "4"),
        ("The answer is 3 x 4 = 12", "12"),
        ("The answer is $20 x 3 = $60.", "60"),
        ("The answer is 1/2 of 10 = 5", "5"),
        ("The answer is 2(3+4) = 14", "14"),
        ("The answer is 2 (3+4) = 14", "14"),
        ("The answer is 2^3 = 8", "8"),
        ("The answer is 2**3 = 8", "8"),
        ("The answer is \\sqrt{16} = 4", "4"),
        ("The answer is not 5, it is 6.", "6"),
        ("The answer isn't 5 but 6.", "6"),
        ("The answer is not 5 or 6, it is 7.", "7"),
        ("The answer is 5! = 120", "120"),
        ("The answer is 6, not 5.", "6"),
        ("The answer is negative 5", "-5"),
        ("The answer is minus 5", "-5"),
        ("The answer is the sum of 3 and 4, which is 7.", "7"),
        ("The answer is 5 x 3, which is $15.", "15"),
        ("The answer is 7, which is 3 more than 4.", "7"),
        ("The answer is that she has 7 left.", "7"),
        ("The answer is that, since 4 are lost, 35 - 4 = 31 remain.", "31"),
        ("The answer is 10 turns * 40 steps/turn = 400 steps in 5 rooms.", "400"),
        ("The answer is to divide 3 by 25 and multiply by 100: 3/25 * 100% = 12%", "12"),
        ("The answer is a maximum of 8 minutes, which is what 1 mile takes.", "8"),
        ("The answer is the sum of 3 and 4, which is about 7.", "7"),
        ("Answer: 3 + 4 = 7 apples. She likes 2 of them.", "7"),
        ("The answer is 7, as 3 + 4 = 7 and not 8 = 7.", "7"),
        ("Answer: about 12 km (5 + 7 = 12)", "12"),
        ("Answer: x = 5", "5"),
        ("Answer: She has 3 + 4 = 7 apples left.", "7"),
        ("Answer: 7. First 3, second 4.", "7"),
        ("Answer: 1. There were 2.", "1"),
        ("The answer is 1. The total is 2. The rest is 3.", "1"),
        ("Answer: 1. The total is 2. The rest is 3.", "1"),
        ("1. The answer is 1. That was it.\n\n2. The rest is 3.", "1"),
        ("Ans: 12", "12"),
        ("The answer would be 12. In 2020 he was 30.", "12"),
        ("The correct answer should be 12, see step 3", "12"),
        ("The answer to the question is 12, see step 3", "12"),
        ("The answer comes to 12, see step 3", "12"),
        ("The answer is 100 000", "100000"),
        ("The answer is 1 234 567.5 km", "1234567.5"),
        ("The answer is 3 100-gram bags", "3"),
        ("The answer is 2 100/200.", "2.5"),
        ("The answer is 2019 500 times", "2019"),
        (r"\boxed{\frac34}", "0.75"),
        (r"\boxed{\dfrac{3}4}", "0.75"),
        (r"\boxed{10^{2}}", "100"),
    ],
)
def test_what_an_anchor_states(text, value):
    assert extract_number(text) == Extracted(Decimal(value), anchored=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("There are 3 boys and 14 girls", "14"),
        ("10-4", "4"),
        ("(3)-4", "4"),
        ("3 * -4", "-4"),
        ("it is 1,2", "2"),
        ("it is 1,234,567.5 in all", "1234567.5"),
        ("it is 1,2345", "2345"),
        ("it is 5 of CO2", "5"),
        ("25 cm^2 or cm^{2}", "25"),
        ("born on 1/2/2020", "2020"),
        ("7 / 0", "0"),
        ("12 / 4", "3"),
        ("the 3rd", "3"),
        ("answers 6", "6"),
        ("#### Step 2: add 8 to it", "8"),
        ("The answer is unknown. Maybe 9?", "9"),
        ("1.5.2", "1.5"),
        ("1 234.", "1234"),
        ("Answer: John has 5 apples. He buys 3. So he has 8.", "8"),
        ("Answer: A cook boils 3 x 4 = 12 eggs.\nHe eats 2, so 12 - 2 = 10 are left.", "10"),
        ("Answer: 3 x 4 = 12 eggs are boiled. He eats 2. 12 - 2 = 10", "10"),
        ("Answer: 1. First add 2+3=5. 2. Then 5*2=10.", "10"),
        ("there are 6, not 5", "6"),
        ("2^3", "8"),
        ("7 or 1.5^2", "7"),
    ],
)
def test_without_an_anchor_the_last_number_counts(text, value):
    assert extract_number(text) == Extracted(Decimal(value), anchored=False)


@pytest.mark.parametrize(
    "text", ["", "no number", "The answer is five.", "x2", "^3", "٣", "½", "--", "$", "The answer is not 5.", "10^100"]
)
def test_without_a_number_there_is_none(text):
    assert extract_number(text) is None


WORDS = ["answer", "is", ":", "=", "3", "1,000", "100 000", "not", "negative", "which is", "since", "(", ")", "x",
    "2.", "^", "{", "}", "\\boxed{", "\\frac", "/", ".", ",", "\n", "####", "$", "%", "-", "about",
    "minus", "**"]  # fmt: skip


@given(
    st.text()
    | st.text("0123456789.,-/ =$%^\\{}()answer isboxdfc#*:\n", max_size=200)
    | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
    | st.lists(st.sampled_from(WORDS), max_size=30).map("".join)
)
def test_no_string_crashes(text):
    assert (number := whole_number(text)) is None or number.is_finite()
    for marked in (text, f"The answer is {text}", f"\\boxed{{{text}"):
        found = extract_number(marked)
        assert found is None or found.value.is_finite()
        assert found is None or same_number(found.value, found.value)


@pytest.mark.parametrize(
    "piece",
    ["9", "1,234,", "answer is ", "1/", "\\frac{1", "1 ", "-", "\\boxed{", "####1\n", "(", " ", "\n", "%", "123 ",
     "2^", "1^9", "= 3 ", "3 x ", "**", "not 5 ", "negative ", " (", "answer: 1. A 2. ", "about ", "which is ",
     "since 4 ", "minus 3", "1, ", "answer is 3 x "],
)  # fmt: skip
def test_long_strings_take_no_more_than_linear_time(piece):
    begin = time.process_time()
    extract_number(piece * 50_000)
    extract_number(f"The answer is 3 {piece * 50_000}4")
    assert time.process_time() - begin < 5


@given(a=st.integers(0, 999), b=st.integers(1, 999), sign=st.sampled_from("+-*x×"), anchor=st.sampled_from(STYLES[:4]))
def test_the_last_value_of_an_equation_counts_whatever_stands_left_of_it(a, b, sign, anchor):
    text = anchor.format(f"{a} {sign} {b} apples = 1234")
    assert extract_number(text) == Extracted(Decimal(1234), anchored=True)
    text = anchor.format(f"1234 = {a} {sign} {b}")
    assert extract_number(text) == Extracted(Decimal(1234), anchored=True)


@given(st.integers(1000, 10**12), st.sampled_from([" ", "\u00a0", "\u202f"]))
def test_thousands_may_be_set_apart_by_spaces(number, space):
    written = f"{number:,}".replace(",", space)
    assert extract_number(f"It is {written}.") == Extracted(Decimal(number), anchored=False)
    assert whole_number(written) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/2", "0.5"), ("$5", "5"), ("25 %", "25"), ("-2 1/2", "-2.5"), (r"\frac12", "0.5"), ("1 000", "1000"),
     ("1/2/2020", None), ("5 km", None), ("3 + 4", None), ("Paris", None), ("", None)],
)  # fmt: skip
def test_a_text_that_is_a_number(text, value):
    assert whole_number(text) == (None if value is None else Decimal(value))


def test_long_numbers_keep_every_digit():
    digits = "1234567890" * 5
    assert extract_number(f"The answer is -{digits}.") == Extracted(Decimal(f"-{digits}"), anchored=True)


def test_numbers_are_the_same_within_the_tolerance():
    assert same_number(Decimal("0.333"), Decimal(1) / 3)
    assert same_number(Decimal("1.001"), Decimal(1))
    assert not same_number(Decimal("1.0011"), Decimal(1))
    assert not same_number(Decimal(5), Decimal(-5))
    assert same_number(Decimal(5), Decimal(6), tolerance=1)
    assert not same_number(Decimal("1e999999999"), Decimal(1))


@pytest.mark.parametrize("text", ["10 - 6 =", "So 3 + 4 = 7, and 7 *", "The answer is 10 - 6 =", "2 = 2\n4 x 3 = \n"])
def test_an_equation_that_breaks_off_states_nothing(text):
    assert extract_number(text) is None
