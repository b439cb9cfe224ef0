"""Fetching one address into a partial file: resumed where it was cut, tried again while that helps."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import final

from llm_adapters.errors import DataError

_CHUNK = 1 << 18
_TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


@final
@dataclass(frozen=True)
class Patience:
    """How long a transfer may take.

    Attributes:
        timeout: seconds without a byte until a connection is given up.
        tries: attempts in a row that bring nothing new, until the transfer is given up.
        pause: seconds before the second of them, doubled for each further one, at most ``longest_pause``.
        total: seconds for the whole file.
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0
    longest_pause: float = 30.0
    total: float = 1800.0


class _PassingError(Exception):
    """An attempt failed, and the next may not."""


def transfer(address: str, part: Path, patience: Patience) -> bool:
    """Complete ``part`` with what ``address`` serves; whether any of it was there before, and kept.

    What arrives is kept in ``part`` when this fails, and the next call goes on behind it with a range request;
    a server that answers it with the whole file is read from the start.

    Raises:
        DataError: the server refuses, does not answer in time, or the disk cannot be written.
    """
    ends = time.monotonic() + patience.total
    farthest, failures, kept = _size(part), 0, False
    while True:
        try:
            return _attempt(address, part, patience.timeout, ends) or kept
        except _PassingError as error:
            kept = kept or _size(part) > 0
            failures = 0 if _size(part) > farthest else failures + 1
            farthest = max(farthest, _size(part))
            wait = min(patience.pause * 2 ** max(0, failures - 1), patience.longest_pause)
            if failures >= patience.tries or time.monotonic() + wait > ends:
                kept_bytes = f": it goes on behind the first {_size(part)} bytes" if _size(part) else ""
                raise DataError(
                    f"{address} could not be fetched: {error}",
                    mend=f"check the connection and run it again{kept_bytes}",
                ) from None
            time.sleep(wait)


def _attempt(address: str, part: Path, timeout: float, ends: float) -> bool:
    """One connection; whether it went on behind what ``part`` held."""
    begin = _size(part)
    headers = {"User-Agent": "llm-adapters", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout) as answer:
            resumed = answer.status == HTTPStatus.PARTIAL_CONTENT and _starts_at(answer, begin)
            if answer.status == HTTPStatus.PARTIAL_CONTENT and not resumed:
                _write(part, b"", "wb")
                raise _PassingError("the server answered with another part than was asked for")
            _receive(answer, part, begin if resumed else 0, ends)
            return resumed
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                # Nothing lies behind: the part is whole, or is of something else, which its hash will tell.
                return True
            if error.code in _TRY_AGAIN or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _PassingError(f"the server answers {error.code} {error.reason}") from None
            raise DataError(
                f"{address} could not be fetched: the server answers {error.code} {error.reason}",
                mend="the address may have moved; put the file into the data folder by hand",
            ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise _PassingError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _receive(answer: http.client.HTTPResponse, part: Path, begin: int, ends: float) -> None:
    """Write the body behind the first ``begin`` bytes, as it comes."""
    announced = answer.headers.get("Content-Length")
    left = int(announced) if announced and announced.isdecimal() else None
    _write(part, b"", "ab" if begin else "wb")
    while chunk := answer.read1(_CHUNK):
        _write(part, chunk, "ab")
        left = None if left is None else left - len(chunk)
        if time.monotonic() > ends:
            raise _PassingError("it takes too long")
    if left:
        raise _PassingError(f"the connection ended {left} bytes early")


def _starts_at(answer: http.client.HTTPResponse, begin: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == begin


def _write(part: Path, chunk: bytes, mode: str) -> None:
    """A disk that fails is no matter of the connection: it is not tried again."""
    try:
        with part.open(mode) as file:
            file.write(chunk)
    except OSError as error:
        raise DataError(
            f"'{part}' cannot be written: {error.strerror}",
            mend="free some space, or name another folder in LLM_ADAPTERS_DATA",
        ) from None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
