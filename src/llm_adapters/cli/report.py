"""``llm-adapters report``: the report of a run or an evaluation, made again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "report"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a complete run or evaluation.")],
    published: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Show the paper's numbers beside: LLaMA-7B, GPT-J-6B, …")
    ] = None,
) -> None:
    """Write report.md again from what lies in the folder."""
    from llm_adapters.errors import DataError
    from llm_adapters.report import write_evaluation_report, write_report
    from llm_adapters.study.evaluation import RECORD

    if (folder / RECORD).is_file():
        path = write_evaluation_report(folder, beside=published)
    elif published:
        raise DataError(f"'{folder}' holds no evaluation", mend="llm-adapters evaluate RUN --benchmarks math")
    else:
        path = write_report(folder)
    typer.echo(path.read_text(encoding="utf-8"))
