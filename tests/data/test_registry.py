import hashlib
import json
import lzma
import os
from dataclasses import replace
from pathlib import Path

import pytest

from llm_adapters.data import registry
from llm_adapters.data.registry import BENCHMARKS, FILES, benchmark_file, data_folder, load_benchmark, locate, state
from llm_adapters.data.registry_table import RECIPES
from llm_adapters.data.sources import load_source
from llm_adapters.errors import DataError

real = pytest.mark.skipif(
    not os.environ.get("LLM_ADAPTERS_DATA"), reason="needs the benchmark files: set LLM_ADAPTERS_DATA"
)
ROWS = [
    {"instruction": f"How much is {n} + 1?", "input": "", "output": str(n + 1), "answer": str(n + 1)} for n in range(9)
]
CONTENT = json.dumps(ROWS).encode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and a registry whose gsm8k and math files are nine rows each."""
    monkeypatch.setenv("LLM_ADAPTERS_DATA", str(tmp_path))
    for name in ("gsm8k/test", "gsm8k/train", "math"):
        small = replace(FILES[name], rows=9, sha256=hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setitem(FILES, name, small)
    return tmp_path


def put(folder, name, content=CONTENT):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_folder_is_one_setting_and_defaults_to_the_cache(monkeypatch):
    monkeypatch.setenv("LLM_ADAPTERS_DATA", "~/sets")
    assert data_folder() == Path.home() / "sets"
    monkeypatch.delenv("LLM_ADAPTERS_DATA")
    monkeypatch.setenv("LLM_ADAPTERS_CACHE", "/some/cache")
    assert data_folder() == Path("/some/cache/data")
    monkeypatch.delenv("LLM_ADAPTERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data_folder() == Path("/xdg/llm-adapters/data")


def test_the_registry_is_complete_and_its_entries_are_plausible():
    assert len(BENCHMARKS) == 15
    assert sum(FILES[f"{name}/test"].rows for name in BENCHMARKS) == 26733
    for name, file in FILES.items():
        assert file.name == name
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
        assert file.git_blob is None or len(bytes.fromhex(file.git_blob)) == 20
        assert file.sha256 or file.git_blob
        assert file.licence
        assert file.origin
        assert file.address is None or file.address.startswith("https://")
    hashes = [file.sha256 for file in FILES.values() if file.sha256]
    assert len(set(hashes)) == len(hashes)
    # The sizes that the paper's mixtures are named after.
    assert sum(FILES[part].rows for part, _ in RECIPES["commonsense170k"]) == 170420
    assert {part for parts in RECIPES.values() for part, _ in parts} <= set(FILES)


@pytest.mark.parametrize(
    ("name", "split", "path"),
    [
        ("gsm8k", "test", "gsm8k/test.json"),
        ("gsm8k", "train", "gsm8k/train.json"),
        ("piqa/train_full", "test", "piqa/train_full.json"),
        ("math", "train", "math_train.json"),
    ],
)
def test_a_name_is_a_benchmark_with_a_split_or_a_file(name, split, path):
    assert benchmark_file(name, split).path == path


def test_unknown_names_and_missing_splits_are_explained():
    with pytest.raises(DataError) as error:
        benchmark_file("gms8k")
    assert error.value.nearest == "gsm8k"
    with pytest.raises(DataError, match="'svamp' has no train file") as error:
        benchmark_file("svamp", "train")
    assert "gsm8k" in error.value.allowed
    assert "svamp" not in error.value.allowed


@pytest.mark.parametrize("ending", ["", ".xz"])
def test_a_file_loads_plain_or_compressed(folder, ending):
    put(folder, f"gsm8k/test.json{ending}", lzma.compress(CONTENT) if ending else CONTENT)
    assert [row.answer for row in load_benchmark("gsm8k")] == [str(n) for n in range(1, 10)]
    assert state(FILES["gsm8k/test"]) == "present"


@pytest.mark.usefixtures("folder")
def test_a_missing_file_says_how_to_get_it():
    assert state(FILES["gsm8k/test"]) == "missing"
    with pytest.raises(DataError, match=r"no gsm8k/test\.json") as error:
        load_benchmark("gsm8k")
    assert error.value.mend.startswith("llm-adapters data download gsm8k/test; or set LLM_ADAPTERS_DATA")
    with pytest.raises(DataError) as error:  # no address: it says how it is made instead
        load_benchmark("gsm8k", "train")
    assert "download" not in error.value.mend
    assert "openai/grade-school-math" in error.value.mend


@pytest.mark.parametrize(
    "content",
    [CONTENT[:-1], CONTENT.replace(b"answer", b"answre", 1), b"", json.dumps([{**ROWS[0], "new": 1}]).encode()],
)
def test_a_changed_file_is_refused_by_name_and_read_by_path(folder, content):
    path = put(folder, "gsm8k/test.json", content)
    assert state(FILES["gsm8k/test"]) == "damaged"
    with pytest.raises(DataError, match="is damaged, or is another file") as error:
        load_benchmark("gsm8k")
    assert "data download gsm8k/test --force" in error.value.mend
    if b"new" in content:
        assert load_source(path, split="test")[0].meta == {"new": 1}


def test_a_truncated_archive_is_damaged(folder):
    put(folder, "gsm8k/test.json.xz", lzma.compress(CONTENT)[:-9])
    assert state(FILES["gsm8k/test"]) == "damaged"
    with pytest.raises(DataError, match="cannot be read"):
        load_benchmark("gsm8k")


def test_the_right_hash_with_the_wrong_number_of_rows_is_refused(folder, monkeypatch):
    monkeypatch.setitem(FILES, "gsm8k/test", replace(FILES["gsm8k/test"], rows=10))
    put(folder, "gsm8k/test.json")
    with pytest.raises(DataError, match="9 rows, not 10"):
        load_benchmark("gsm8k")


def test_a_file_known_by_its_git_id_alone():
    # The id that `git hash-object` prints for a file that holds "hello\n".
    file = replace(FILES["hellaswag/train_full"], git_blob="ce013625030ba8dba906f756967f9e9ca394464a")
    assert file.accepts(b"hello\n")
    assert not file.accepts(b"hello")


def test_sources_resolve_registered_names_by_split_and_sample_them(folder, monkeypatch):
    put(folder, "gsm8k/test.json")
    put(folder, "math_train.json")
    monkeypatch.chdir(folder)  # a folder named gsm8k stands here: the name wins
    assert len(load_source("gsm8k", split="test")) == 9
    assert len(load_source("math", split="train")) == 9
    assert load_source("./gsm8k/test.json", split="train") == load_source("gsm8k", split="test")
    few = load_source("gsm8k", split="test", size=3, seed=1)
    assert len(few) == 3
    assert set(few) < set(load_source("gsm8k", split="test", size=5, seed=1))
    with pytest.raises(DataError, match="10 examples were asked for, there are 9"):
        load_source("gsm8k", split="test", size=10)


@real
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_with_its_rows_and_gold_answers(name):
    rows = load_benchmark(name)
    assert len(rows) == benchmark_file(name).rows
    assert all(row.answer and row.instruction for row in rows)


@real
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("/test")])
def test_every_training_file_that_is_there_is_the_registrys(name):
    if locate(FILES[name]) is None:
        pytest.skip(f"{name} is not in the data folder")
    assert len(registry.load_file(FILES[name])) == FILES[name].rows
