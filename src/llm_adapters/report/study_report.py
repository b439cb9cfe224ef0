"""The report of a study: Markdown, LaTeX, CSV, figures, and one page, all from one list of sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from llm_adapters.errors import OutputError
from llm_adapters.report.accuracy import accuracy_tables, contamination, known_model
from llm_adapters.report.collect import Collected, collect, without_path
from llm_adapters.report.cost import cost, forgetting
from llm_adapters.report.drift import drift
from llm_adapters.report.figures import figures
from llm_adapters.report.method_comparison import method_comparison
from llm_adapters.report.page import page
from llm_adapters.report.pooled import Configuration, configurations, protocols, ranked
from llm_adapters.report.predictions import LIMIT, Drill, drill_down
from llm_adapters.report.reproducibility import reproducibility
from llm_adapters.report.runs import run_table, unfinished_table
from llm_adapters.report.section import Section, as_latex, as_markdown
from llm_adapters.report.significance import significance
from llm_adapters.report.table import Table, as_csv
from llm_adapters.report.validation import validation
from llm_adapters.study.trials import StudyRecord, TrialRecord

FOLDER = "report"
COMPARISON = "method_comparison.csv"
_ONE_SEED = "**Every number comes from one seed.** Its interval answers for the choice of test rows alone."


def write_study_report(
    study: StudyRecord,
    out: Path | None = None,
    *,
    beside: str | None = None,
    against: StudyRecord | None = None,
    with_predictions: bool = True,
    limit: int = LIMIT,
) -> Path:
    """Write the report of a study as far as it is.

    Args:
        study: what to report.
        out: where to; ``report`` in the study's folder if not given. An earlier report there is replaced.
        beside: a model of the paper whose published accuracies stand beside every number; without it those of the
            same base, if the paper has it.
        against: an earlier study, to say what changed since.
        with_predictions: whether the page holds questions and completions; without, nothing of a test set is in it.
        limit: characters that those may take.

    Returns:
        The folder of the report.

    Raises:
        DataError: no trial has finished, or the paper has no such model.
        OutputError: ``out`` holds something else.
    """
    model = known_model(beside) if beside else None
    found = collect(study)
    points = configurations(found)
    runs = run_table(found, points)
    sections = [
        Section("Summary", _summary(found, points)),
        *([Section("Drift", (), drift(collect(against), found))] if against else []),
        *_sections(found, points, runs, model),
    ]
    best = [run for point in ranked(points) for run in point.runs]
    rest = {id(run) for run in best}
    order = [*best, *(run for run in found.runs if id(run) not in rest)]
    drill = drill_down(order, limit=limit) if with_predictions else Drill()
    folder = _fresh(out or study.folder / FOLDER)
    title = f"Study {study.name}"
    tables = [table for section in sections for table in section.tables]
    for table in tables:
        _write(folder / "tables" / f"{table.name}.csv", as_csv(table))
    for figure in (figure for section in sections for figure in section.figures):
        _write(folder / "figures" / f"{figure.name}.svg", figure.svg(alone=True) + "\n")
    _write(folder / COMPARISON, as_csv(method_comparison(found)))
    _write(folder / "report.tex", as_latex(title, sections))
    _write(folder / "report.md", as_markdown(title, sections))
    _write(folder / "report.html", page(title, sections, drill, filtered=runs, axes=study.axes))
    return folder


def write_run_page(folder: Path) -> Path:
    """Write ``report.html`` of one complete run: the page of a study with one trial."""
    trial = TrialRecord(folder.resolve().name, {}, folder, "done")
    found = collect(StudyRecord(trial.id, folder, {}, [trial], {}))
    points = configurations(found)
    runs = run_table(found, points)
    sections = [Section("Summary", [_ONE_SEED]), *_sections(found, points, runs, None)]
    path = folder / "report.html"
    _write(path, page(f"Run {trial.id}", sections, drill_down(found.runs), filtered=runs, axes={}))
    return path


def _sections(found: Collected, points: Sequence[Configuration], runs: Table, model: str | None) -> list[Section]:
    """All but the summary; a section without content is left out."""
    further = (significance(points), validation(points), contamination(points), cost(points), forgetting(points))
    waiting = unfinished_table(found)
    sections = [
        Section("Accuracy", (), accuracy_tables(points, model) if protocols(points) else ()),
        Section("Figures", (), figures(found, points)),
        *(Section(table.title, (), [table]) for table in further if table is not None),
        Section("Runs", (), [runs, *([waiting] if waiting else [])]),
        Section("Reproducibility", _again(found.study), reproducibility(found)),
    ]
    return [section for section in sections if section.items]


def _summary(found: Collected, points: Sequence[Configuration]) -> list[str]:
    trained = [point for point in points if point.runs]
    alone = sum(len(point.runs) == 1 for point in trained)
    trials = len(found.study.trials)
    said = [f"{len(found.runs):,} of {trials:,} trials have finished: {len(trained):,} configurations."]
    if found.unfinished:
        said[0] += f" Without a result, and listed under Runs: {len(found.unfinished):,}."
    if alone == len(trained):
        said.append(_ONE_SEED)
    elif alone:
        said.append(f"{alone:,} of {len(trained):,} configurations were trained with one seed only; their rows say so.")
    else:
        said.append("Every configuration was trained with several seeds; intervals answer for those too.")
    return said


def _again(study: StudyRecord) -> list[str]:
    settings = yaml.safe_dump(_public(study.settings), sort_keys=False, allow_unicode=True).rstrip()
    return ["The study as resolved (study.yaml):", f"```yaml\n{settings}\n```"] if study.settings else []


def _public(value: object) -> object:
    """Settings without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    return without_path(value) if isinstance(value, str) and re.match(r"[/~]", value) else value


def _fresh(folder: Path) -> Path:
    """A new folder, or that of an earlier report without its tables and figures.

    Raises:
        OutputError: it holds something else.
    """
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    if inside and not (folder / COMPARISON).is_file():
        raise OutputError(f"'{folder}' is no report's folder: it holds {inside[0].name}", mend="--out another/folder")
    for old in (*folder.glob("tables/*.csv"), *folder.glob("figures/*.svg")):
        old.unlink()
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
