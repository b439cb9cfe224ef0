"""Transfers from a server that cuts, stalls, refuses and lies about what it sends."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_server import CONTENT, bad_server
from llm_adapters.data import transfer as module
from llm_adapters.data.transfer import Patience, transfer
from llm_adapters.errors import DataError

FAST = Patience(timeout=0.3, tries=3, pause=0.01)


@pytest.fixture
def server():
    with bad_server() as running:
        yield running


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.part"


def test_a_connection_that_is_cut_is_resumed_where_it_was(server, part):
    server.acts = [(300_000,), (1,), "stall"]
    transfer(server.address, part, FAST)
    assert part.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=301001-"]


def test_any_cuts_end_in_the_same_file(server, part):
    @given(st.lists(st.integers(1, 400_000), max_size=5), st.booleans())
    def check(cuts, ranges):
        part.unlink(missing_ok=True)
        server.acts, server.ranges = [(cut,) for cut in cuts], ranges
        transfer(server.address, part, Patience(timeout=5, tries=7, pause=0))
        assert part.read_bytes() == CONTENT

    check()


def test_a_server_without_ranges_is_read_from_the_start(server, part):
    server.ranges, server.acts = False, [(300_000,)]
    transfer(server.address, part, FAST)
    assert server.asked == [None, "bytes=300000-"]
    assert part.read_bytes() == CONTENT


def test_a_server_that_is_always_cut_is_given_up(server, part):
    server.ranges, server.acts = False, [(1000,)] * 50
    with pytest.raises(DataError, match=r"ended \d+ bytes early"):
        transfer(server.address, part, FAST)
    assert len(server.asked) == 1 + FAST.tries


def test_another_range_than_was_asked_for_is_not_joined(server, part):
    server.acts = [(300_000,), "shifted"]
    transfer(server.address, part, FAST)
    assert server.asked == [None, "bytes=300000-", None]
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (429, 3), (500, 3)])
def test_only_what_may_pass_is_tried_again(server, part, status, attempts):
    server.acts = [status] * 9
    with pytest.raises(DataError, match=f"answers {status}"):
        transfer(server.address, part, FAST)
    assert len(server.asked) == attempts


def test_a_server_that_stalls_is_left_after_the_timeout(server, part):
    server.acts = ["stall", *["silent"] * 9]
    started = time.monotonic()
    with pytest.raises(DataError, match="could not be fetched: timed out"):
        transfer(server.address, part, FAST)
    assert time.monotonic() - started < 5
    assert server.asked == [None, *["bytes=1000-"] * FAST.tries]


def test_the_whole_file_has_a_deadline_too(server, part):
    server.acts = [(1000,)] * 100
    with pytest.raises(DataError, match=r"bytes early|too long"):
        transfer(server.address, part, Patience(timeout=1, tries=200, pause=0.05, total=0.3))
    assert len(server.asked) < 20


def test_a_trickle_that_never_stalls_ends_at_the_deadline_as_well(server, part):
    server.acts = ["trickle"]
    started = time.monotonic()
    with pytest.raises(DataError, match="it takes too long"):
        transfer(server.address, part, Patience(timeout=1, tries=3, pause=0, total=0.3))
    assert time.monotonic() - started < 5
    assert 0 < part.stat().st_size < len(CONTENT)


def test_no_server_at_all(part):
    with pytest.raises(DataError, match="refused"):
        transfer("http://127.0.0.1:9/test.json", part, FAST)


def test_a_full_disk_is_told_at_once_and_not_tried_again(server, part, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1000)
    real_open = module.Path.open

    def full(path, mode="r", *rest, **more):
        if path == part and mode == "ab" and path.exists() and path.stat().st_size >= 5000:
            raise OSError(28, "No space left on device")
        return real_open(path, mode, *rest, **more)

    monkeypatch.setattr(module.Path, "open", full)
    with pytest.raises(DataError, match="No space left") as error:
        transfer(server.address, part, FAST)
    assert "free some space" in error.value.mend
    assert len(server.asked) == 1
    assert part.stat().st_size == 5000
