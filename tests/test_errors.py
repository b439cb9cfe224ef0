"""The family of user errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llm_adapters import errors
from llm_adapters.errors import MissingExtraError, OutputError, SiteError, UserError, nearest
from llm_adapters.train.disk import writing

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, UserError)]


def test_every_error_is_caught_as_one_family_and_as_a_value_error() -> None:
    assert {error.__name__ for error in FAMILY} >= {
        *("UserError", "ConfigError", "ModelError", "SiteError", "MethodError", "AdapterError", "RouteError"),
        *("DataError", "OutputError", "MissingExtraError"),
    }
    for error in FAMILY:
        made = error("p", "e", "q") if error is MissingExtraError else error("a problem")
        assert isinstance(made, UserError)
        assert isinstance(made, ValueError)
        assert not issubclass(error, tuple(other for other in FAMILY if other not in (error, UserError)))


def test_the_whole_message() -> None:
    error = SiteError("unknown site 'atn.q'", given="atn.q", allowed=["attn.q", "attn.v"], mend="sites: [attn.q]")
    assert str(error) == (
        "unknown site 'atn.q'\n  allowed: attn.q, attn.v\n  nearest: attn.q\n  mend:    sites: [attn.q]"
    )
    assert (error.problem, error.given, error.nearest) == ("unknown site 'atn.q'", "atn.q", "attn.q")


def test_what_is_not_known_is_left_out() -> None:
    assert str(UserError("it broke")) == "it broke"
    assert str(UserError("it broke", mend="mend it")) == "it broke\n  mend:    mend it"
    assert str(UserError("no", given="zzz", allowed=[1, 2])) == "no\n  allowed: 1, 2"
    assert UserError("no", allowed=["a"]).nearest is None
    assert UserError("no", given=10, allowed=[100, 7]).nearest == "100"
    assert UserError("no", allowed=(str(n) for n in range(2))).allowed == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "allowed", "expected"),
    [
        ("lroa", ["lora", "series"], "lora"),
        ("LORA", ["Lora", "series"], "Lora"),
        ("prefixx", ["prompt", "prefix"], "prefix"),
        ("zzz", ["lora", "series"], None),
        ("lora", [], None),
    ],
)
def test_nearest(given: str, allowed: list[str], expected: str | None) -> None:
    assert nearest(given, allowed) == expected


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("gguf", "gguf", "reading GGUF files")
    assert str(error) == (
        "reading GGUF files needs the package 'gguf', which is not installed\n"
        "  mend:    pip install 'llm-adapters[gguf]'"
    )


def test_of_very_many_allowed_values_some_are_printed_and_the_nearest_of_all() -> None:
    error = UserError("no run", given="run-70x", allowed=[f"run-{i}" for i in range(100)])
    assert "run-39 and 60 more" in str(error)
    assert "run-40" not in str(error)
    assert "nearest: run-7" in str(error)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "free some space; the same"),
        (errno.EDQUOT, "free some space; the same"),
        (errno.EROFS, "let this user write there; the same"),
        (errno.EACCES, "let this user write there; the same"),
        (errno.EIO, "mend what stands in the way; the same"),
    ],
)
def test_a_disk_that_fails_is_told_what_helps_against_its_failure(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(OutputError) as caught, writing(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in caught.value.problem
    assert caught.value.mend.startswith(said)
