import hashlib

import pytest

from llm_adapters.data.example import Example
from llm_adapters.data.templates import get_template
from llm_adapters.errors import DataError, ModelError

PLAIN = Example("Do this.\nNow.", "", "OUT", "")
WITH_INPUT = Example("Do this.\nNow.", "Some input.", "OUT", "")
GEMMA = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)


def text(name, tokenizer, example):
    template = get_template(name)
    return template.prompt(tokenizer, example), template.completion(tokenizer, example)


def test_plain(tokenizer):
    assert text("plain", tokenizer, PLAIN) == ("Question: Do this.\nNow.\nAnswer:", " OUT")
    assert text("plain", tokenizer, WITH_INPUT)[0] == "Question: Do this.\nNow.\nInput: Some input.\nAnswer:"


def test_braces_of_an_example_are_text(tokenizer):
    assert "{input} {x}" in text("plain", tokenizer, Example("{input} {x}", "in", "", ""))[0]


def test_alpaca_has_no_stray_spaces(tokenizer):
    prompt, completion = text("alpaca", tokenizer, WITH_INPUT)
    lines = prompt.split("\n")
    assert lines == [line.strip() for line in lines]
    assert lines[1:] == [
        *("", "### Instruction:", "Do this.", "Now."),
        *("", "### Input:", "Some input."),
        *("", "### Response:", ""),
    ]
    assert completion == "OUT"
    assert "Input" not in text("alpaca", tokenizer, PLAIN)[0]


@pytest.mark.parametrize(
    ("name", "example", "digest"),
    [  # sha256 of what the reference's own generate_prompt functions return, its commit 8166572
        ("paper", PLAIN, "1e8ac2f1879fe49b5536303b0ca29cad0d963bb97a043507631bdd93addc78c6"),
        ("paper", WITH_INPUT, "c125107adc0bed5a5082de364935ae1cc27c0e839f2917c66a3315c37fb0fe96"),
        ("paper-eval", PLAIN, "ae43cb29b7b3dac9a6ef7110dfe461df84a475a1960ad2c30ebccf7be583d07a"),
        ("paper-eval", WITH_INPUT, "7004c47376313593daa2b51e10c3daba186f7f582283c8dd675e8d8b6d33ec23"),
    ],
)
def test_paper_prompts_are_the_references_to_the_byte(tokenizer, name, example, digest):
    prompt, completion = text(name, tokenizer, example)
    whole = prompt + completion if name == "paper" else prompt  # finetune.py's ends in the output
    assert hashlib.sha256(whole.encode()).hexdigest() == digest


def test_paper_lines_are_indented_by_16_spaces(tokenizer):
    header, empty, *lines = text("paper", tokenizer, WITH_INPUT)[0].split("\n")
    assert header.endswith("the request. ")
    assert empty == ""
    assert [line for line in lines if not line.startswith(" " * 16)] == ["Now."]


def test_chat_is_what_the_chat_template_renders(tokenizer):
    template = get_template("chat")
    encoded = template.encode(tokenizer, WITH_INPUT, max_length=999, train_on="all")
    turns = [
        {"role": "user", "content": "Do this.\nNow.\n\nSome input."},
        {"role": "assistant", "content": "OUT"},
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(encoded.input_ids) + "\n" == rendered


def test_a_chat_template_may_close_a_turn_with_another_token_than_eos(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=GEMMA)
    prompt, completion = text("chat", tokenizer, PLAIN)
    assert prompt == "<start>user\nDo this.\nNow.<end_of_turn>\n<start>model\n"
    assert completion == "OUT<end_of_turn>"


def test_chat_adds_no_second_bos(make_tokenizer):
    tokenizer = make_tokenizer(post="<s> $A", chat_template="<s>{{ messages[0].content }}:")
    assert tokenizer.decode(get_template("chat").prompt_ids(tokenizer, PLAIN)) == "<s>Do this.\nNow.:"


def test_a_tokenizer_without_chat_template_is_refused(make_tokenizer):
    with pytest.raises(ModelError, match="no chat template"):
        get_template("chat").prompt_ids(make_tokenizer(chat_template=None), PLAIN)


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(DataError) as error:
        get_template("alpacca")
    assert error.value.nearest == "alpaca"
    assert set(error.value.allowed) == {"plain", "alpaca", "paper", "paper-eval", "chat"}
