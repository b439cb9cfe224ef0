from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.errors import UserError
from llm_adapters.generate import generate
from llm_adapters.generate.stopping import StopTexts, all_of, cut
from tiny import tiny_model


class Letters:
    """A tokenizer whose tokens are single letters, but for one special token, 99."""

    all_special_tokens: ClassVar = ["<ab>"]
    all_special_ids: ClassVar = [99]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        assert skip_special_tokens
        return "".join(chr(97 + token % 26) for token in ids if token != 99)


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18], [19, 20]]


def test_completions_end_at_their_own_texts() -> None:
    model, letters = tiny_model("llama"), Letters()
    whole = {c.prompt: c for c in generate(model, PROMPTS, max_new_tokens=12, stop_ids=())}
    texts = [letters.decode(whole[i].ids)[4:6] if i % 2 else "nowhere" for i in range(len(PROMPTS))]
    ended = [StopTexts([text], letters).reached for text in texts]
    found = generate(
        model, PROMPTS, max_new_tokens=[12, 12, 3, 12, 12], stop_ids=(), ended=ended, batch_size=3
    )  # fmt: skip
    for completion in found:
        i, text = completion.prompt, letters.decode(completion.ids)
        full = letters.decode(whole[i].ids)
        assert completion.stopped == (i % 2 == 1)
        if completion.stopped:
            assert text == full[: full.index(texts[i]) + 2]
            assert cut(text, [texts[i]]) == full[: full.index(texts[i])]
        else:
            assert text == full[: 3 if i == 2 else 12]


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match="tokenizer"):
        list(generate(tiny_model("llama"), PROMPTS, max_new_tokens=2, stop_ids=(), stop_texts=["x"]))


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_text_is_found_when_its_last_letter_comes(text: str, stops: list[str]) -> None:
    ids = [0 if letter == "a" else 1 for letter in text]
    texts = StopTexts(stops, Letters())
    first = next((n for n in range(1, len(ids) + 1) if texts.reached(ids[:n])), None)
    starts = [(text.find(stop, 1), len(stop)) for stop in stops if text.find(stop, 1) > 0]  # not where it begins
    assert first == min((start + length for start, length in starts), default=None)
    assert cut(text, stops) == text[: min((start for start, _ in starts), default=len(text))]


def test_a_special_token_ends_a_completion_and_its_name_hides_no_text() -> None:
    assert StopTexts(["<ab>"], Letters()).reached([0, 1, 99])
    assert not StopTexts(["ab"], Letters()).reached([5, 99])
    assert not StopTexts(["<ab>"], Letters()).reached([99, 0])


class Characters(Letters):
    """A tokenizer whose tokens are the code points."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("\nQ: 2+3?\nA: 5", None),
        ("\n\n \nQ: 2+3?\nA: 5\nQ: 3+3?", "\n\n \nQ: 2+3?\nA: 5"),
        ("7\nQ: and then?", "7"),
        (" 7\nQ: and then?", " 7"),
        (f"{' ' * 40}\nQ: 2?", None),
        (f"7{' ' * 40}\nQ: 2?", f"7{' ' * 40}"),
        ("\nQ:", None),
        ("", None),
    ],
)
def test_a_text_ends_nothing_where_a_completion_begins(text: str, kept: str | None) -> None:
    end = StopTexts(["\nQ:"], Characters()).end(list(map(ord, text)))
    assert (end is None) == (kept is None)
    assert cut(text, ["\nQ:"]) == (text if kept is None else kept)
    if kept is not None and end is not None:
        assert text[:end] == f"{kept}\nQ:"


def test_nor_does_a_special_token() -> None:
    assert not StopTexts(["<ab>"], Letters()).reached([99])
    assert StopTexts(["<ab>"], Letters()).end([99, 99, 0, 99]) == 4


def test_several_ends_have_to_be_reached_each() -> None:
    reached = all_of([StopTexts(["ab"], Letters()), StopTexts(["c"], Letters())])
    ids = [5, 0, 1, 3, 2]
    assert [reached(ids[: n + 1]) for n in range(5)] == [False, False, False, False, True]
    assert StopTexts(["ab", "c"], Letters()).end(ids) == 3
    assert StopTexts(["x"], Letters()).end(ids) is None
