import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.encoding import IGNORED
from llm_adapters.data.example import Example
from llm_adapters.data.templates import TEMPLATES, get_template
from llm_adapters.errors import ModelError

EXAMPLE = Example("Add 1 and 2.", "", "1 + 2 = 3\nThe answer is 3.", "3")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30)
EVERY = pytest.mark.parametrize("name", TEMPLATES)


@EVERY
@given(texts=st.tuples(TEXTS, TEXTS, TEXTS))
def test_training_begins_with_the_ids_of_evaluation(tokenizer, name, texts):
    example = Example(*texts, answer="")
    template = get_template(name)
    prompt = template.prompt_ids(tokenizer, example)
    encoded = template.encode(tokenizer, example, max_length=10_000, train_on="completion")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert tokenizer.decode(encoded.input_ids[len(prompt) : -1]).lstrip(" ") == example.output.lstrip(" ")
    assert encoded.labels[-1] == tokenizer.eos_token_id
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1 + (name == "chat")
    assert not encoded.truncated


@EVERY
def test_training_on_all_labels_every_token(tokenizer, name):
    encoded = get_template(name).encode(tokenizer, EXAMPLE, max_length=999, train_on="all")
    assert encoded.labels == encoded.input_ids


def test_what_is_too_long_is_cut_from_the_right(tokenizer):
    template = get_template("plain")
    whole = template.encode(tokenizer, EXAMPLE, max_length=999, train_on="completion")
    length = len(whole.input_ids)
    exact = template.encode(tokenizer, EXAMPLE, max_length=length, train_on="completion")
    assert exact == whole
    cut = template.encode(tokenizer, EXAMPLE, max_length=length - 1, train_on="completion")
    assert cut.truncated
    assert cut.input_ids == whole.input_ids[:-1]
    assert tokenizer.eos_token_id not in cut.labels
    prompt_only = template.encode(tokenizer, EXAMPLE, max_length=5, train_on="completion")
    assert prompt_only.labels == [IGNORED] * 5


def test_the_tokenizers_own_tokens_frame_the_text_once(make_tokenizer):
    framing = make_tokenizer(post="<s> $A <|im_end|>")
    encoded = get_template("plain").encode(framing, EXAMPLE, max_length=999, train_on="all")
    assert tokenizer_text(framing, encoded) == (
        "<s>Question: Add 1 and 2.\nAnswer: 1 + 2 = 3\nThe answer is 3.<|im_end|>"
    )


def test_a_tokenizer_without_end_of_sequence_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence"):
        get_template("plain").encode(tokenizer, EXAMPLE, max_length=9, train_on="all")


def tokenizer_text(tokenizer, encoded):
    return tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
