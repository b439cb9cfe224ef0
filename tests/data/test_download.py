"""Downloads from a server on this machine that behaves as badly as real ones."""

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.data import transfer
from llm_adapters.data.download import download, download_all
from llm_adapters.data.registry import BenchmarkFile
from llm_adapters.data.transfer import Patience
from llm_adapters.errors import DataError

CONTENT = bytes(range(256)) * 4000  # a megabyte: several chunks
FAST = Patience(timeout=0.3, tries=3, pause=0.01)


class Server(ThreadingHTTPServer):
    """Serves ``content``; the n-th request is treated as the n-th of ``acts`` says, later ones well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.acts, self.asked, self.released = CONTENT, True, [], [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/test.json"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        served, body = self.server, self.server.content
        act = served.acts.pop(0) if served.acts else "well"
        asked = self.headers.get("Range")
        served.asked.append(asked)
        if isinstance(act, int) and act >= 400:
            self.send_error(act)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and served.ranges else 0
        if begin and begin >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            shift = 7 if act == "shifted" else 0
            self.send_header("Content-Range", f"bytes {begin + shift}-{len(body) - 1}/{len(body)}")
        if act != "unannounced":
            self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        if act in ("stall", "silent"):
            self.wfile.write(body[begin : begin + 1000] if act == "stall" else b"")
            self.wfile.flush()
            served.released.wait(10)
        elif isinstance(act, tuple):  # cut after so many bytes
            self.wfile.write(body[begin : begin + act[0]])
        else:
            self.wfile.write(body[begin:])


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.released.set()
        running.shutdown()


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


def test_a_connection_that_is_cut_is_resumed_where_it_was(server, folder):
    server.acts = [(300_000,), (1,), "stall"]
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert target(folder).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=301001-"]


def test_any_cuts_end_in_the_same_file(server, folder):
    @given(st.lists(st.integers(1, 400_000), max_size=5), st.booleans())
    def check(cuts, ranges):
        target(folder).unlink(missing_ok=True)
        server.acts, server.ranges = [(cut,) for cut in cuts], ranges
        download(entry(server.address), patience=Patience(timeout=5, tries=7, pause=0))
        assert target(folder).read_bytes() == CONTENT

    check()


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


def test_a_server_without_ranges_is_read_from_the_start(server, folder):
    server.ranges, server.acts = False, [(300_000,)]
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert server.asked == [None, "bytes=300000-"]
    assert target(folder).read_bytes() == CONTENT


def test_a_server_that_is_always_cut_is_given_up(server, folder):
    server.ranges, server.acts = False, [(1000,)] * 50
    with pytest.raises(DataError, match=r"ended \d+ bytes early"):
        download(entry(server.address), patience=FAST)
    assert len(server.asked) == 1 + FAST.tries
    assert not target(folder).exists()


def test_another_range_than_was_asked_for_is_not_joined(server, folder):
    server.acts = [(300_000,), "shifted"]
    assert download(entry(server.address), patience=FAST) == "downloaded"
    assert server.asked == [None, "bytes=300000-", None]
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


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (429, 3), (500, 3)])
def test_only_what_may_pass_is_tried_again(server, folder, status, attempts):
    server.acts = [status] * 9
    with pytest.raises(DataError, match=f"answers {status}"):
        download(entry(server.address), patience=FAST)
    assert len(server.asked) == attempts
    assert not target(folder).exists()


def test_a_server_that_stalls_is_left_after_the_timeout(server, folder):
    server.acts = ["stall", *["silent"] * 9]
    started = time.monotonic()
    with pytest.raises(DataError, match="could not be fetched: timed out"):
        download(entry(server.address), patience=FAST)
    assert time.monotonic() - started < 5
    assert server.asked == [None, *["bytes=1000-"] * FAST.tries]
    assert not target(folder).exists()


def test_the_whole_file_has_a_deadline_too(server, folder):
    server.acts = [(1000,)] * 100
    with pytest.raises(DataError, match=r"bytes early|too long"):
        download(entry(server.address), patience=Patience(timeout=1, tries=200, pause=0.05, total=0.3))
    assert not target(folder).exists()
    assert len(server.asked) < 20


def test_no_server_at_all(folder):
    with pytest.raises(DataError, match="refused"):
        download(entry("http://127.0.0.1:9/test.json"), patience=FAST)
    assert not target(folder).exists()


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


def test_a_full_disk_is_told_at_once_and_leaves_no_file(server, folder, monkeypatch):
    monkeypatch.setattr(transfer, "_CHUNK", 1000)
    real_open = transfer.Path.open

    def full(path, mode="r", *rest, **more):
        if path.name.endswith(".part") and mode == "ab" and path.exists() and path.stat().st_size >= 5000:
            raise OSError(28, "No space left on device")
        return real_open(path, mode, *rest, **more)

    monkeypatch.setattr(transfer.Path, "open", full)
    with pytest.raises(DataError, match="No space left") as error:
        download(entry(server.address), patience=FAST)
    assert "free some space" in error.value.mend
    assert not target(folder).exists()
    assert len(server.asked) == 1


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
