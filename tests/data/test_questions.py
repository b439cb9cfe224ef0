import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.example import Example
from llm_adapters.data.questions import masked, normalised, stem, words

LEADS = {
    "Please choose the correct answer to the question: ": "\n\nAnswer1: red Answer2: blue\n\nAnswer format: answer1",
    "Please choose the correct solution to the question: ": "\n\nSolution1: stir it\n\nSolution2: shake it",
    "Please choose the correct ending to complete the given sentence: ": "\n\nEnding1: sits. Ending2: runs.",
    "Please choose the correct answer to fill in the blank to complete the given sentence: ": " Option1: a Option2: b",
    "Please answer the following question with true or false, question: ": "\n\nAnswer format: true/false",
    "": " Answer Choices: (A) 1 (B) 2 (C) 3",
    " ": " (A) 1 (B) 2 (C) 3 (D) 4",
}


def question(text, more=""):
    return Example(text, more, "", "")


@pytest.mark.parametrize(("lead", "choices"), LEADS.items())
def test_every_wrapper_comes_off(lead, choices):
    bare = "In 2 pots: which color has the sky at noon? "
    assert stem(question(lead + bare + choices)).strip() == bare.strip()


@pytest.mark.parametrize(
    "text",
    [
        "Please answer: what is 3 + 4?",
        "Was part (A) of the plan longer than 3 pages?",
        "The option: 1 or 2?",
        "Answer format:",
    ],
)
def test_a_question_that_only_looks_like_a_wrapper_stays(text):
    assert stem(question(text)) == text


def test_the_input_belongs_to_the_question():
    assert words(stem(question("Add these.", "4 and 5"))) == ["add", "these", "4", "and", "5"]


def test_words_do_not_depend_on_how_an_accent_is_written():
    assert words("the Cafe\u0301 na\u00efve") == words("the Café nai\u0308ve") == ["the", "café", "naïve"]


def test_words_do_not_depend_on_how_a_tokeniser_splits_clitics():
    assert words("Ann's dog didn't eat 1,000.5 x_y") == ["anns", "dog", "didnt", "eat", "1", "000", "5", "x", "y"]
    assert words("Ann 's dog did n't eat 1,000.5 x y") == words("Ann's dog didn't eat 1,000.5 x_y")
    assert words("'tis the 'best' of 'em") == ["tis", "the", "best", "of", "em"]


@pytest.mark.parametrize(
    ("one", "other", "same", "same_masked"),
    [
        ("How many apples? Tom has 3.", "how many APPLES ? Tom has 3", True, True),
        ("How many apples has Tom, 3?", "How many apples has Tom, 14?", False, True),
        ("How many apples has Tom?", "How many pears has Tom?", False, False),
        ("5 + 3 = ?", "5 - 3 = ?", False, False),
        ("5 + 3 = ?", "5+3=?", True, True),
        ("5 + 3 = ?", "81 + 7 = ?", False, True),
        ("Who owns the Café?", "who owns the Cafe\u0301", True, True),
        ("\u212bngstr\u00f6m was who, he asked", "\u00c5ngstro\u0308m was who, he asked", True, True),
        ("Find the \ufb01rst of \uff13 apples there", "find the first of 3 apples there", True, True),
        ("Who owns the Café?", "Who owns the Cafe?", False, False),
    ],
)
def test_what_counts_as_the_same_question(one, other, same, same_masked):
    assert (normalised(one) == normalised(other)) is same
    assert (masked(one) == masked(other)) is same_masked


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_text_has_a_stem_and_normal_forms(text, more):
    bare = stem(question(text, more))
    assert bare in (f"{text}\n{more}" if more else text)
    assert bare.strip() or not (text + more).strip()
    assert not re.search(r"\s", normalised(bare))
    assert not re.search(r"\d", masked(bare))
    assert all(word and not re.search(r"[\W_]", word) for word in words(bare))


@given(st.lists(st.text(st.characters(categories=["Ll"]), min_size=2, max_size=5), min_size=4, max_size=20))
def test_white_space_and_punctuation_make_no_difference(tokens):
    assert normalised(" ".join(tokens)) == normalised(" , ".join(tokens))
    assert normalised(" ".join(tokens)) == normalised("\n(".join(tokens))
