"""One family of errors for mistakes that a user can mend.

Every message says what was given, what is allowed, the nearest match and how to mend it.
A bug of ours is an assertion or an ordinary exception, never a ``UserError``.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

_MOST = 40  # allowed values that are printed: a folder may hold thousands


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback and exits with 2.

    Args:
        problem: what is wrong, in one sentence, with the place (file, field, site) where it stands.
        given: the value that was given; the nearest of ``allowed`` is looked up by it.
        allowed: the values that are possible here.
        mend: what to type or change.

    Attributes:
        told: whether another process of the same command prints it.
    """

    told = False

    def __init__(
        self,
        problem: str,
        *,
        given: object = None,
        allowed: Iterable[object] = (),
        mend: str = "",
    ) -> None:
        self.problem, self.given, self.mend = problem, given, mend
        self.allowed = [str(value) for value in allowed]
        self.nearest = nearest(str(given), self.allowed) if given is not None else None
        super().__init__(self._message())

    def _message(self) -> str:
        lines = [self.problem]
        if self.allowed:
            more = len(self.allowed) - _MOST
            lines.append(f"  allowed: {', '.join(self.allowed[:_MOST])}{f' and {more} more' if more > 0 else ''}")
        if self.nearest is not None:
            lines.append(f"  nearest: {self.nearest}")
        if self.mend:
            lines.append(f"  mend:    {self.mend}")
        return "\n".join(lines)


class ConfigError(UserError):
    """A run or study configuration is wrong; carries every mistake of the file at once."""


class ModelError(UserError):
    """A model cannot be found, read, or understood."""


class SiteError(UserError):
    """A site is unknown, or the model does not have it."""


class MethodError(UserError):
    """A method, or a field of a method, is wrong or does not fit the model."""


class AdapterError(UserError):
    """An adapter is missing, exists already, does not fit its base, or its file is damaged."""


class RouteError(UserError):
    """A route names an unknown adapter or does not fit the batch."""


class DataError(UserError):
    """A data file is missing, empty or malformed."""


class TrainingError(UserError):
    """Training cannot go on: a loss is not a number, or one row does not fit into memory."""


class OutputError(UserError):
    """Writing would overwrite something, or is not possible."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            mend=f"pip install 'llm-adapters[{extra}]'",
        )


class Stopped(BaseException):
    """Somebody asked for the run to stop (SIGTERM, Ctrl-C), and it has: nothing is lost.

    No error, and no ``Exception``: ``except Exception`` in some library must not swallow it.
    """


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed value closest to ``given``, or None when nothing is close."""
    lowered = {value.lower(): value for value in allowed}
    found = difflib.get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    return lowered[found[0]] if found else None


def disk_mend(failure: OSError) -> str:
    """What a user can do where a file cannot be written."""
    if failure.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "free some space"
    if failure.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "let this user write there"
    return "mend what stands in the way"
