import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.evaluation.options import Option, lettered, likeliest, numbered, starting_with, with_number

QUESTION = "Please choose the correct answer to the question: Which one?\n\nAnswer1: red. Answer2: blue: a colour\n\n"


def test_numbered_options_are_read_from_the_question():
    assert numbered(f"{QUESTION}Answer format: answer1/answer2") == (("answer1", "red."), ("answer2", "blue: a colour"))
    two_lines = "Question: How?\n\nSolution1: By hand.\n\nSolution2: By foot.\n\nAnswer format: solution1/solution2"
    assert numbered(two_lines) == (("solution1", "By hand."), ("solution2", "By foot."))
    one_line = "Sentence: _ ran.\n\nOption1: Ann Option2: Bob Answer format: option1/option2"
    assert numbered(one_line) == (("option1", "Ann"), ("option2", "Bob"))


def test_labels_without_numbers_are_their_own_texts():
    assert numbered("question: is it?\n\nAnswer format: true/false") == (("true", "true"), ("false", "false"))


@pytest.mark.parametrize(
    "instruction",
    [
        "How many?",
        "Answer format: answer1/answer2",
        "Q\n\nAnswer1: red Answer3: blue\n\nAnswer format: answer1/answer2",
        "Q\n\nAnswer2: red Answer1: blue\n\nAnswer format: answer1/answer2",
        "Q\n\nAnswer1: Answer2: blue\n\nAnswer format: answer1/answer2",
        f"{QUESTION}Answer format: ",
        "",
    ],
)
def test_a_question_of_another_form_has_no_options(instruction):
    assert numbered(instruction) == ()
    assert lettered(instruction) == ()


def test_lettered_options_are_read_from_the_question():
    text = "How far (in km)? Answer Choices: (A) 20 (B) 30 km (C)  f(x) = (x) (D) 5 : 3 (E) None"
    assert lettered(text) == (("A", "20"), ("B", "30 km"), ("C", "f(x) = (x)"), ("D", "5 : 3"), ("E", "None"))
    assert lettered("How far? Answer Choices: (A) 20 (B) 30 (D) 40") == ()


TEXTS = st.text("abc XYZ:.1\n", min_size=1).map(str.strip).filter(bool)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5))
def test_any_texts_are_read_back(question, texts):
    labels = [f"ending{i}" for i in range(1, len(texts) + 1)]
    options = " ".join(f"{label.capitalize()}: {text}" for label, text in zip(labels, texts, strict=True))
    instruction = f"Complete: {question}\n\n{options}\n\nAnswer format: {'/'.join(labels)}"
    assert numbered(instruction) == tuple(zip(labels, texts, strict=True))


@given(st.text())
def test_no_question_crashes(text):
    for reader in (numbered, lettered):
        assert isinstance(reader(text), tuple)
        assert isinstance(reader(f"{text} Answer Choices: (A){text}(B)\nAnswer1: {text}\nAnswer format: {text}"), tuple)


OPTIONS = [Option("A", "5"), Option("B", "5/3"), Option("C", "the big dog"), Option("D", "big"), Option("E", "-$1,200")]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("5", "A"), ("5 km", "A"), ("5/3", "B"), ("5/7", None), ("5.5", None), ("Big dog!", "C"),
        ("The big dog ran", "C"), ("a big", "D"), ("bigger", None),
        ("-$1,200", "E"), ("$1,200", None), ("dog", None), ("", None), ("!", None),
    ],
)  # fmt: skip
def test_the_longest_option_that_a_text_begins_with(text, label):
    assert starting_with(text, OPTIONS) == label


def test_short_options_must_be_the_whole_text_if_so_asked():
    assert starting_with("big as a house", OPTIONS, least=3) is None
    assert starting_with("the big", OPTIONS, least=3) == "D"


@pytest.mark.parametrize(
    ("text", "label"),
    [("5.0", "A"), ("1.6667", "B"), ("-1200 dollars", "E"), ("3 and 5", None), ("7", None), ("none", None)],
)
def test_the_only_option_that_is_a_number(text, label):
    assert with_number(text, OPTIONS) == label


def test_two_options_of_one_number_are_not_told_apart_by_it():
    assert with_number("5", [Option("A", "5 km"), Option("B", "5.0 km")]) is None


def test_the_likeliest_option_with_and_without_its_length():
    options = [Option("answer1", "no"), Option("answer2", "not on a Sunday")]
    assert likeliest(options, [-2.0, -9.0]) == "answer2"  # -1.0 and -0.6 a character
    assert likeliest(options, [-2.0, -9.0], normalise=False) == "answer1"
    assert likeliest(options, [-1.0, -7.5]) == "answer1"  # a tie goes to the first
    with pytest.raises(ValueError, match="zip"):
        likeliest(options, [-1.0])
