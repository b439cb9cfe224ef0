import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data.example import Example
from llm_adapters.data.sources import SUFFIXES, load_examples, load_source
from llm_adapters.data.word_problems import word_problems
from llm_adapters.errors import DataError

ROWS = [
    {"instruction": "How many?", "input": "three", "output": "3 of them", "answer": "3", "source": "mine"},
    {"instruction": "And now?", "output": ""},
]


def write(folder, name, rows):
    as_lines = ".jsonl" in name
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if as_lines else json.dumps(rows)
    path = folder / name
    path.write_bytes(lzma.compress(text.encode()) if name.endswith(".xz") else text.encode())
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_examples(tmp_path, suffix):
    first, second = load_examples(write(tmp_path, f"data{suffix}", ROWS))
    assert first == Example("How many?", "three", "3 of them", "3")
    assert first.meta == {"source": "mine"}
    assert second == Example("And now?", "", "", "")


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 4), min_size=1, max_size=4))
def test_any_text_comes_back_from_a_jsonl_file(tmp_path_factory, texts):
    examples = [Example(*text) for text in texts]
    rows = [{key: getattr(e, key) for key in ("instruction", "input", "output", "answer")} for e in examples]
    assert load_examples(write(tmp_path_factory.mktemp("any"), "data.jsonl", rows)) == examples


def test_every_malformed_row_is_named_at_once(tmp_path):
    rows = [ROWS[0], {"instruction": "q"}, ["no"], {"instruction": "q", "output": "o", "answer": 5}, ROWS[1]]
    with pytest.raises(DataError) as error:
        load_examples(write(tmp_path, "data.json", rows))
    message = str(error.value)
    assert "3 mistakes" in message
    assert "row 2: has neither 'output' nor 'answer' (its keys: instruction)" in message
    assert "row 3: is a list, not an object" in message
    assert "row 4: 'answer' is 5, not a string" in message
    assert "row 1:" not in message


def test_a_file_of_another_kind_is_told_from_an_unknown_name(tmp_path):
    (tmp_path / "rows.csv").write_text("instruction,answer\n")
    with pytest.raises(DataError, match="is no data file"):
        load_source(str(tmp_path / "rows.csv"), split="test")
    with pytest.raises(DataError, match="neither a data file nor a known source"):
        load_source("rows.csv", split="test")


def test_a_line_that_is_no_json_is_one_mistake_among_others(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n\n{"instruction": \n{"output": "o"}\n')
    with pytest.raises(DataError, match=r"2 mistakes(?s:.)*line 3: Expecting(?s:.)*line 4: has no 'instruction'"):
        load_examples(path)


def test_of_many_mistakes_ten_are_shown(tmp_path):
    with pytest.raises(DataError) as error:
        load_examples(write(tmp_path, "data.json", [{"instruction": "q"}] * 25))
    message = str(error.value)
    assert message.count("has neither 'output'") == 10
    assert "and 15 more" in message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b"[]", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.json", b"", "not valid JSON"),
        ("a.json", b'{"data": []}', "holds a dict"),
        ("a.json", b"\xff\xfe[", "cannot be read"),
        ("a.json.xz", b"[]", "cannot be read"),
        ("a.jsonl.xz", lzma.compress(b'{"instruction": "q"}')[:-9], "cannot be read"),
    ],
)
def test_an_unusable_file_is_a_data_error(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        load_examples(tmp_path / name)


def test_a_missing_file_names_the_nearest_in_its_folder(tmp_path):
    write(tmp_path, "train.json", ROWS)
    write(tmp_path, "tests.json", ROWS)
    with pytest.raises(DataError) as error:
        load_examples(tmp_path / "trian.json")
    assert error.value.nearest == "train.json"
    assert set(error.value.allowed) == {"train.json", "tests.json"}


def test_a_missing_folder_names_the_nearest_folder(tmp_path):
    (tmp_path / "gsm").mkdir()
    with pytest.raises(DataError) as error:
        load_examples(tmp_path / "gms" / "deep" / "train.json")
    assert error.value.nearest == "gsm"


def test_an_unknown_source_names_the_built_in_one():
    with pytest.raises(DataError) as error:
        load_source("word-problem", split="train", size=3)
    assert error.value.nearest == "word-problems"


def test_the_built_in_source_is_the_generator():
    assert load_source("word-problems", split="test", size=5, seed=3) == word_problems("test", 5, 3)
    with pytest.raises(DataError, match="say how many"):
        load_source("word-problems", split="test")


def test_samples_are_nested_ordered_and_seeded(tmp_path):
    path = write(tmp_path, "data.json", [{"instruction": f"{n:03}", "output": ""} for n in range(100)])

    def sample(size, seed):
        return [example.instruction for example in load_source(path, split="train", size=size, seed=seed)]

    assert len(set(sample(40, 1))) == 40
    assert sample(40, 1) == sorted(sample(40, 1))
    assert set(sample(10, 1)) < set(sample(40, 1))
    assert sample(10, 1) != sample(10, 2)
    assert sample(None, 1) == sample(100, 1)


@pytest.mark.parametrize("size", [0, -1, 3])
def test_an_impossible_size_is_a_data_error(tmp_path, size):
    with pytest.raises(DataError, match=f"{size}"):
        load_source(write(tmp_path, "data.json", ROWS), split="train", size=size)
