import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError
from llm_adapters.evaluation.clauses import TURN_TEXTS, first_turn
from llm_adapters.evaluation.judge import Judgement, decide
from llm_adapters.evaluation.labels import read_label
from llm_adapters.evaluation.letters import read_letter
from llm_adapters.evaluation.options import Option
from llm_adapters.evaluation.protocols import PROTOCOLS, get_protocol
from llm_adapters.generate.stopping import cut

LETTERS = [Option(letter, f"{number} km") for letter, number in zip("ABCDE", range(10, 60, 10), strict=True)]
LABELS = [Option("answer1", "red wine"), Option("answer2", "the sea"), Option("answer3", "3")]
TRUTH = [Option("true", "true"), Option("false", "false")]
STATEMENTS = [
    "The answer is {}.",
    "**Answer:** {}",
    "the correct answer is {}",
    "so it is \\boxed{{{}}}",
    "#### {}",
    "{}",
]


@given(st.sampled_from(STATEMENTS), st.sampled_from("ABCDE"), st.sampled_from(["{}", "({})", "{})", "**{}**"]))
def test_any_letter_is_read_in_any_statement(statement, letter, form):
    text = statement.format(form.format(letter))
    assert read_letter(f"All trains DEPART at 8. (A) and (B) cannot be.\n{text}", LETTERS) == letter


@given(st.sampled_from(STATEMENTS), st.sampled_from(LABELS), st.sampled_from([str, str.upper, str.capitalize]))
def test_any_label_is_read_in_any_statement(statement, option, case):
    assert read_label(statement.format(case(option.label)), LABELS) == option.label
    assert read_label(f"I would say answer1 at first.\n{statement.format(case(option.label))}", LABELS) == option.label


@given(st.sampled_from(STATEMENTS), st.sampled_from(TRUTH), st.sampled_from([str, str.upper, str.capitalize]))
def test_true_and_false_are_read_in_any_statement(statement, option, case):
    assert read_label(statement.format(case(option.label)), TRUTH) == option.label


WORDS = ["answer", "answer1", "answer2,", "is", "not", "or", "B", "(C)", "2", "the sea", "because", "I pick", "true",
    "yes", "it is", "hence", "ans.", "-", ":", ".", ",", "\n", "\\boxed{", "}", "Question:", "Paris", "to",
    "solution"]  # fmt: skip
ANYTHING = (
    st.text()
    | st.text("ABCDE()123. answer is option/true,nor:\n*#\\boxed{}", max_size=120)
    | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join)
)


@given(ANYTHING, st.sampled_from(list(PROTOCOLS.values())))
def test_no_completion_crashes_and_unparsed_means_no_answer(text, protocol):
    for judgement in (
        protocol.number(text, "7"),
        protocol.letter(text, "C", LETTERS),
        protocol.letter(text, "C", []),
        protocol.label(text, "answer2", LABELS, ["answer1", "answer2", "answer3"]),
        protocol.label(text, "true", [], ["true", "false"]),
        protocol.free(text, "Paris"),
    ):
        assert (judgement.status == "unparsed") == (judgement.answer is None)


@given(ANYTHING)
def test_what_is_read_is_on_offer(text):
    assert read_letter(text, LETTERS) in (*"ABCDE", None)
    assert read_label(text, LABELS) in ("answer1", "answer2", "answer3", None)
    assert read_label(text, TRUTH) in ("true", "false", None)


@pytest.mark.parametrize(
    "piece",
    ["answer is ", "answer1 or ", "(A) ", "A", "answer", " ", "\n", "\\text{", "\\boxed{", "####\n", "not ",
     "red wine ", "answer is answer1, ", "the ", "true/", "* ", "answer1, ", "hot because answer1 ", "hence B ",
     "not B, ", "not true ", "Yes it ", "\n\nProblem", "I pick "],
)  # fmt: skip
def test_long_completions_take_no_more_than_linear_time(piece):
    text, begin = piece * 20_000, time.process_time()
    for protocol in PROTOCOLS.values():
        protocol.letter(text, "C", LETTERS)
        protocol.label(text, "answer1", LABELS, ["answer1", "answer2"])
        protocol.label(text, "true", TRUTH, ["true", "false"])
        protocol.free(text, "Paris")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "head",
    ["answer", "not 5", "not B", "The answer is", "answer1", "Yes", "Hence", "3", "3 = ", "Paris", "7\nQuestion", "I"],
)
def test_nor_does_much_white_space(head):
    text, begin = f"{head}{' ' * 50_000}x{' ' * 50_000}4", time.process_time()
    for protocol in PROTOCOLS.values():
        protocol.letter(text, "C", LETTERS)
        protocol.label(text, "answer1", LABELS, ["answer1", "answer2"])
        protocol.label(text, "true", TRUTH, ["true", "false"])
        protocol.free(text, "Paris")
        protocol.free(text, "1/2")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("7\n\nQuestion: what is 2 + 2?\nAnswer: 4", "7\n\n"),
        ("7\n### Instruction:\nAdd.", "7\n"),
        ("7<|im_start|>user", "7"),
        ("7\nQ: and then?", "7\n"),
        ("7\n**Problem:** two", "7\n"),
        ("7\n**Solution:** 8", "7\n**Solution:** 8"),
        ("Question: what is 3 + 4?\nAnswer: 7", "Question: what is 3 + 4?\nAnswer: 7"),
        ("Question: 3 + 4?\n7\nQuestion: 2 + 2?\n4", "Question: 3 + 4?\n7\n"),
        ("No question: 7", "No question: 7"),
        ("\nQuestion: 2+3?\nAnswer: 5", "\nQuestion: 2+3?\nAnswer: 5"),
        ("\n### Response:\nThe answer is 5.", "\n### Response:\nThe answer is 5."),
        ("Reasoning\nResponse: The answer is 5", "Reasoning\nResponse: The answer is 5"),
        ("Reasoning\n### Response:\nThe answer is 5", "Reasoning\n"),
        ("The steps are\nProblem: find x. Solve. It is 7", "The steps are\nProblem: find x. Solve. It is 7"),
        ("7\n\nProblem: two", "7\n\n"),
        ("7\n### Problem: two", "7\n"),
        ("", ""),
    ],
)
def test_a_completion_ends_where_a_new_question_begins(text, kept):
    assert first_turn(text) == kept


@given(
    st.sampled_from(["", " ", "\n", "7", "7\n", "The answer is 7."]), st.sampled_from(TURN_TEXTS), st.text(max_size=20)
)
def test_where_generation_stops_reading_does(before, turn, after):
    written = f"{before}{turn}{after}"
    generated = cut(written, TURN_TEXTS)
    assert first_turn(generated).strip() == first_turn(written).strip()
    assert generated == before or not before.strip()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\nQuestion: 2+3?\nAnswer: 5", "5"),
        ("\n### Response:\nThe answer is 5.", "5"),
        ("Reasoning\nResponse: The answer is 5", "5"),
        ("The steps are\nProblem: find x. Solve. The answer is 7", "7"),
    ],
)
def test_what_begins_like_a_turn_is_read(completion, answer):
    assert cut(completion, PROTOCOLS["standard"].stop_texts) == completion
    assert PROTOCOLS["standard"].number(completion, "5").answer == answer


def test_the_paper_cuts_at_its_own_heading_and_reads_small_labels_alone():
    paper = PROTOCOLS["paper"]
    assert paper.number("I say 7\n### Response:\n8", "7") == Judgement("correct", "7")
    assert paper.letter("### Response:\nC", "C", LETTERS) == Judgement("unparsed", None)
    assert paper.label("Answer3 or answer1", "answer3", LABELS, ["answer1", "answer2", "answer3"]).status == "wrong"


def test_a_users_answers_are_numbers_or_text_under_both():
    for text, gold, standard, paper in (
        ("The answer is 7, not 8", "7", "correct", "wrong"),
        ("Paris", "Paris", "correct", "correct"),
        ("Rome\nor Paris", "Paris", "unparsed", "unparsed"),
        ("1,000 in all", "1,000", "correct", "correct"),
    ):
        assert PROTOCOLS["standard"].free(text, gold).status == standard
        assert PROTOCOLS["paper"].free(text, gold).status == paper


def test_the_paper_asks_as_the_reference_and_the_standard_as_the_run():
    assert (PROTOCOLS["paper"].template, PROTOCOLS["paper"].beams) == ("paper-eval", 4)
    assert get_template(str(PROTOCOLS["paper"].template)) is not None
    assert (PROTOCOLS["standard"].template, PROTOCOLS["standard"].beams) == (None, 1)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(DataError) as error:
        get_protocol("papers")
    assert error.value.nearest == "paper"


def test_a_judgement_has_three_ends():
    assert [decide("7", correct=True), decide("7", correct=False), decide(None, correct=False)] == [
        ("correct", "7"), ("wrong", "7"), ("unparsed", None),
    ]  # fmt: skip
