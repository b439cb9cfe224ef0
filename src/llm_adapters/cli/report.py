"""``llm-adapters report``: the report of a run, an evaluation or a study, made again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "report"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a complete run or evaluation, or of a study.")],
    published: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show the paper's numbers beside: LLaMA-7B, GPT-J-6B, …")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Of a study: where to write; default DIR/report.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OLD", help="Of a study: an earlier one, to show what changed since.")
    ] = None,
    without_predictions: Annotated[
        bool, typer.Option("--without-predictions", help="Of a study: no questions and completions in the page.")
    ] = False,
) -> None:
    """Write the report of what lies in the folder."""
    from llm_adapters.errors import DataError
    from llm_adapters.report import write_evaluation_report, write_report, write_run_page, write_study_report
    from llm_adapters.runs.names import RECORD
    from llm_adapters.study.trials import STUDY, read_study

    if folder.is_file():
        raise DataError(f"'{folder}' is a file", mend="the folder of a run, an evaluation or a study")
    if (folder / STUDY).is_file():
        written = write_study_report(
            read_study(folder), out, beside=published, against=None if against is None else read_study(against),
            with_predictions=not without_predictions,
        )  # fmt: skip
        typer.echo(f"{written}: report.html, report.md, report.tex, method_comparison.csv, tables/, figures/")
        return
    if out is not None or against is not None or without_predictions:
        raise DataError(
            f"'{folder}' holds no study ({STUDY} is missing): --out, --against and --without-predictions are for those",
            mend="llm-adapters report DIR",
        )
    if (folder / RECORD).is_file():
        path = write_evaluation_report(folder, beside=published)
    elif published:
        raise DataError(f"'{folder}' holds no evaluation", mend="llm-adapters evaluate RUN --benchmarks math")
    else:
        path = write_report(folder)
        write_run_page(folder)
    typer.echo(path.read_text(encoding="utf-8"))
