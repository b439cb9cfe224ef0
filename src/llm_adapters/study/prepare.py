"""A study before anything runs: read, expanded, checked as a whole; then its folder and its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.config.files import override, read_yaml
from llm_adapters.config.strict import listed
from llm_adapters.errors import ConfigError, OutputError
from llm_adapters.runs.folder import write_whole
from llm_adapters.runs.outcome import outcome
from llm_adapters.study.bases import Bases
from llm_adapters.study.budget import matched
from llm_adapters.study.data_check import with_data
from llm_adapters.study.expand import Trial, expand, unique
from llm_adapters.study.ledger import FILE, Ledger
from llm_adapters.study.spec import Study, read_spec
from llm_adapters.study.trials import RUNS, STUDY, read_settings
from llm_adapters.study.workers import clear_dead


@dataclass(frozen=True)
class Prepared:
    """A study in which no mistake was found.

    Attributes:
        study: as it was read.
        trials: its runs.
        bases: the models without weights that it was checked on.
    """

    study: Study
    trials: list[Trial]
    bases: Bases


def prepare(path: Path, assignments: list[str] | None = None, *, bases: Bases | None = None) -> Prepared:
    """A study from its file.

    Raises:
        ConfigError: with all mistakes of the file, of its runs, and of their models and data.
    """
    return check(override(read_yaml(path), assignments or []), path.parent, where=str(path), bases=bases)


def check(data: Mapping[str, Any], folder: Path, *, where: str, bases: Bases | None = None) -> Prepared:
    """A study from plain data; see :func:`prepare`."""
    bases = bases or Bases()
    study, problems = read_spec(data, folder)
    trials, of_runs = expand(study, bases)
    trials, of_budget = matched(study, trials, bases)
    trials, twins = unique(trials)
    trials, of_data = with_data(trials, score=study.file.evaluate)
    problems += of_runs + of_budget + twins + of_data
    if problems:
        count = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}; nothing was run"
        raise ConfigError(f"{where}: {count}\n{listed(problems)}")
    return Prepared(study, trials, bases)


def open_study(prepared: Prepared, folder: Path, note: Callable[[str], None]) -> None:
    """Make or extend the study in ``folder``: its plan becomes that of ``prepared``; finished runs stay finished.

    Raises:
        OutputError: the folder holds another study, or something else.
    """
    study = prepared.study
    if folder.exists() and not (folder / STUDY).exists() and not (folder / FILE).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise OutputError(f"'{folder}' holds something else", mend="--out another/folder")
    elif (folder / STUDY).exists():
        name = read_settings(folder)["name"]
        if name != study.name:
            raise OutputError(f"'{folder}' holds the study '{name}'", mend="--out another/folder")
    with_ledger = (folder / FILE).is_file()
    folder.mkdir(parents=True, exist_ok=True)
    resolved = yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True)
    write_whole(folder / STUDY, resolved)
    with Ledger(folder, create=True) as ledger:
        if not study.file.search:
            new, gone = ledger.plan([(t.id, t.axes, t.config.model_dump(mode="json")) for t in prepared.trials])
            if with_ledger and new:
                note(f"{new} runs are new")
            if gone:
                note(f"{gone} runs of an earlier plan are not in this one; they stay in the ledger")
        settle(ledger, folder, study.file.objective, note)
        done = [entry.id for entry in ledger.entries() if entry.state == "done"]
    bare = [
        id_ for id_ in done if study.file.evaluate and not (folder / RUNS / id_ / "eval" / "summary.json").is_file()
    ]
    if bare:
        note(
            f"{len(bare)} finished runs, such as {bare[0]}, were trained without an evaluation (evaluate: false) and "
            f"stay so: llm-adapters evaluate {folder / RUNS / bare[0]} scores one"
        )
    clear_dead(folder)


def settle(ledger: Ledger, folder: Path, objective: str, note: Callable[[str], None]) -> None:
    """Let the ledger agree with the folders: complete runs are done, and runs whose result is lost wait again."""
    for entry in ledger.entries():
        there = outcome(folder / RUNS / entry.id, dict(entry.config), objective)
        rescored = there is not None and entry.state == "done" and there.score != entry.detail.get("score")
        if there is not None and (rescored or entry.state in ("waiting", "failed")):  # rescored: by another objective
            ledger.record(entry.id, "done", "", **there.record())
        elif there is None and entry.state == "done":
            note(f"the result of {entry.id} is gone; it runs again")
            ledger.record(entry.id, "retry", "")
