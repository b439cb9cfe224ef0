"""Checkpoints on disk: folders that are there whole or not at all, and prove it by their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_adapters.adapters.store import write_synced
from llm_adapters.errors import OutputError
from llm_adapters.train.disk import sync_folder, writing

RECORD = "checkpoint.json"
FORMAT = 1


class Checkpoints:
    """The folder ``checkpoints`` of a run, with ``step-N`` for every checkpoint that is kept.

    Args:
        folder: need not exist.
        keep: how many of the last ones stay; the best that one of these names stays with it.
        note: told of damage.
    """

    def __init__(self, folder: Path, keep: int, note: Callable[[str], None]) -> None:
        self.folder, self.keep, self.note = folder, keep, note
        self.last: Path | None = None

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step}"

    def save(self, step: int, files: Mapping[str, bytes], *, best: int | None, prune: bool = True) -> None:
        """Write a checkpoint, then remove those that are no longer kept, unless that is left for later.

        Every file is on disk before the record with their checksums, and the record before the folder gets its name.

        Args:
            step: it names the folder.
            files: names and contents.
            best: the step of the checkpoint with the best adapter so far, maybe this one.

        Raises:
            OutputError: it cannot be written; what was written of it is removed again.
        """
        fresh = self.folder / f".step-{step}-{os.getpid()}"
        record = {
            "format": FORMAT,
            "step": step,
            "best": best,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        kept = f"the last good checkpoint is '{self.last}'" if self.last else "there is no earlier checkpoint"
        try:
            with writing(self.at(step), kept):
                fresh.mkdir(parents=True)
                for name, data in files.items():
                    write_synced(fresh / name, data)
                write_synced(fresh / RECORD, (json.dumps(record, indent=2) + "\n").encode())
                sync_folder(fresh)
                if self.at(step).exists():  # from before the validation of this step
                    os.replace(self.at(step), self._before(step))
                os.replace(fresh, self.at(step))
                sync_folder(self.folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(self._before(step), ignore_errors=True)
        self.last = self.at(step)
        if prune:
            self.prune()

    def _before(self, step: int) -> Path:
        """Where the checkpoint of a step lies while another takes its place."""
        return self.folder / f".step-{step}-before"

    def tidy(self) -> None:
        """Remove what a kill has left half written, and put back what it found between two names."""
        for aside in self.folder.glob(".step-*-before"):
            name = aside.name.removeprefix(".").removesuffix("-before")
            if not (self.folder / name).exists():
                os.replace(aside, self.folder / name)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or damaged, in order."""
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def problem(self, step: int) -> str | None:
        """What is wrong with the checkpoint of a step, or with the best that it names; None if all is well."""
        return damage(self.at(step)) or self._damage_of_best(step)

    def back_to(self, step: int) -> Path | None:
        """The checkpoint of ``step``, which must be whole, with all later ones removed; with 0 all are, and None."""
        self.tidy()
        for later in [each for each in self.steps() if each > step]:
            self._remove(later)
        self.last = self.at(step) if step else None
        return self.last

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, with the best that it names; None where there is none.

        What a kill has left half written is removed silently, a damaged checkpoint with a note. Where the best is
        damaged, one from before it is used, which gives the same best again; if there is none, the newest without it.
        """
        self.tidy()
        problems: dict[int, str] = {}
        found = None
        for step in reversed(self.steps()):
            problem = self.problem(step)
            if problem is None:
                found = step
                break
            problems[step] = problem
        else:
            found = next((step for step in problems if damage(self.at(step)) is None), None)
        for step, problem in problems.items():
            if step == found:
                self.note(f"{problem}: it is lost, and the best is looked for anew")
                break
            self.note(f"the checkpoint '{self.at(step)}' cannot be used and is removed: {problem}")
            self._remove(step)
        self.last = None if found is None else self.at(found)
        return self.last

    def has_lost(self, best: int | None) -> bool:
        """Whether the checkpoint that has the best adapter so far is damaged."""
        return best is not None and damage(self.at(best)) is not None

    def _damage_of_best(self, step: int) -> str | None:
        best = read_record(self.at(step))["best"]
        problem = None if best in (None, step) else damage(self.at(best))
        return problem and f"the best adapter so far lies in step-{best}, where {problem}"

    def prune(self) -> None:
        """Remove the checkpoints that are no longer kept."""
        last = self.steps()[-self.keep :]
        kept = {*last, *(read_record(self.at(step))["best"] for step in last if damage(self.at(step)) is None)}
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint; it loses its name first, so that a kill leaves no half of one."""
        aside = self.folder / f".step-{step}-old"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.at(step), aside)
        shutil.rmtree(aside)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every byte is what its record says.

    Raises:
        OutputError: it cannot be read, which need not be its fault, nor last.
    """
    if not folder.is_dir():
        return "it is missing"
    try:
        record = read_record(folder)
        if record["format"] != FORMAT or folder.name != f"step-{record['step']}" or "best" not in record:
            return f"'{RECORD}' is not that of this checkpoint"
        for name, sha256 in record["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                return f"'{name}' is truncated or was changed"
    except FileNotFoundError as failure:
        return f"'{Path(failure.filename).name}' is missing"
    except OSError as failure:
        raise OutputError(
            f"the checkpoint '{folder}' cannot be read: {failure.strerror or failure}",
            mend="nothing was removed; once it can be read, the same command goes on",
        ) from failure
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"'{RECORD}' is damaged"
    return None


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint, as it stands there."""
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))
