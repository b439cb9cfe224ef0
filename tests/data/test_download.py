"""Downloads into the data folder: only what the registry accepts ever gets a file's name."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from bad_server import CONTENT, bad_server
from llm_adapters.data.download import download, download_all
from llm_adapters.data.registry import BenchmarkFile
from llm_adapters.data.transfer import Patience
from llm_adapters.errors import DataError

FAST = Patience(timeout=0.3, tries=3, pause=0.01)


@pytest.fixture
def server():
    with bad_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_ADAPTERS_DATA", str(tmp_path))
    return tmp_path / "some"


def entry(address, content=CONTENT):
    return BenchmarkFile("some/test", 3, "none", "here", address, hashlib.sha256(content).hexdigest())


def target(folder):
    return folder / "test.json"


def part(folder):
    return folder / ".test.json.part"


def test_a_file_is_fetched_whole_once(server, folder):
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert target(folder).read_bytes() == CONTENT
    assert not part(folder).exists()
    for force in (False, True):
        assert download(entry(server.address), force=force, patience=FAST) == "present"
    assert server.asked == [None]


def test_what_arrived_before_a_failure_is_kept_for_the_next_call(server, folder):
    server.acts = [(5000,), 503, 503, 503]
    with pytest.raises(DataError, match="503") as error:
        download(entry(server.address), patience=FAST)
    assert "goes on behind the first 5000 bytes" in error.value.mend
    assert not target(folder).exists()
    assert part(folder).read_bytes() == CONTENT[:5000]
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert server.asked[-1] == "bytes=5000-"
    assert target(folder).read_bytes() == CONTENT


def test_a_truncated_body_of_unknown_length_is_not_taken_for_whole(server, folder):
    server.content, server.acts = CONTENT[:-1], ["unannounced"]
    with pytest.raises(DataError, match="serves something else"):
        download(entry(server.address), patience=FAST)
    assert not target(folder).exists()
    assert not part(folder).exists()


def test_wrong_content_is_named_and_deleted(server, folder):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="serves something else") as error:
        download(entry(server.address), patience=FAST)
    assert "<html>please log in" in str(error.value)
    assert hashlib.sha256(CONTENT).hexdigest() in str(error.value)
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("stale", [b"other bytes", CONTENT + b"more"], ids=["shorter", "longer"])
def test_a_part_of_something_else_is_fetched_again_from_the_start(server, folder, stale):
    folder.mkdir()
    part(folder).write_bytes(stale)
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert server.asked == [f"bytes={len(stale)}-", None]
    assert target(folder).read_bytes() == CONTENT


def test_a_complete_part_needs_nothing_more(server, folder):
    folder.mkdir()
    part(folder).write_bytes(CONTENT)
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert target(folder).read_bytes() == CONTENT


def test_another_file_in_its_place_is_replaced_only_by_force(server, folder):
    folder.mkdir()
    target(folder).write_bytes(b"mine")
    with pytest.raises(DataError, match="is another file") as error:
        download(entry(server.address), patience=FAST)
    assert "--force" in error.value.mend
    assert (target(folder).read_bytes(), server.asked) == (b"mine", [])
    server.acts = [404]
    with pytest.raises(DataError, match="404"):  # and even then not before the new one is there
        download(entry(server.address), force=True, patience=FAST)
    assert target(folder).read_bytes() == b"mine"
    assert download(entry(server.address), force=True, patience=FAST) == "downloaded"
    assert target(folder).read_bytes() == CONTENT


def test_several_at_once_fetch_it_once(server, folder):
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: download(entry(server.address), patience=Patience()), range(6)))
    assert sorted(outcomes) == ["downloaded", *["present"] * 5]
    assert server.asked == [None]
    assert target(folder).read_bytes() == CONTENT


@pytest.mark.usefixtures("folder")
def test_a_file_without_an_address_says_how_it_is_made():
    with pytest.raises(DataError, match="no public address") as error:
        download(entry(None), patience=FAST)
    assert "here" in error.value.mend


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_ADAPTERS_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written"):
        download(entry("http://127.0.0.1:9/test.json"), patience=FAST)


def test_one_that_fails_does_not_keep_the_others(server, folder):
    nowhere = BenchmarkFile("some/train", 3, "none", "here", "http://127.0.0.1:9/", "0" * 64)
    made = BenchmarkFile("some/more", 3, "none", "made by hand", None, "0" * 64)
    told = {}
    with pytest.raises(DataError, match="2 of 3 files failed") as error:
        download_all(
            [nowhere, made, entry(server.address)],
            patience=FAST,
            tell=lambda file, outcome: told.update({file.name: outcome}),
        )
    assert "refused" in str(error.value)
    assert "made by hand" in str(error.value)
    assert [name for name, outcome in told.items() if isinstance(outcome, DataError)] == ["some/train", "some/more"]
    assert told["some/test"] == "downloaded"
    assert target(folder).read_bytes() == CONTENT
