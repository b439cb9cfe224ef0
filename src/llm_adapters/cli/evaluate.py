"""``llm-adapters evaluate``: any number of adapters, and their base, on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_adapters.cli.options import Force
from llm_adapters.cli.progress import Progress

if TYPE_CHECKING:
    from llm_adapters.evaluation.score import Score

NAME = "evaluate"


def command(
    targets: Annotated[list[str], typer.Argument(metavar="RUN|ADAPTER|MODEL …", help="Folders, or one model.")],
    benchmarks: Annotated[str, typer.Option(help="Names, groups (math, commonsense) or data files, with commas.")],
    protocol: Annotated[
        str, typer.Option(help="standard, paper, both, likelihood (for sets with options), or several with commas.")
    ] = "standard",
    size: Annotated[int | None, typer.Option(help="Rows of each set, sampled by --seed; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    template: Annotated[str | None, typer.Option(help="Of the prompts; default the runs' own, else plain.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it is not where the adapters say.")] = None,
    with_base: Annotated[bool, typer.Option(help="Evaluate the bare base too.")] = True,
    batch_size: Annotated[int | None, typer.Option(help="Prompts decoded together; default what fits.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Limit of each completion; default the set's own.")] = None,
    beams: Annotated[bool, typer.Option("--beams", help="Decode the protocol paper with its 4 beams.")] = False,
    dtype: Annotated[str | None, typer.Option(help="Of the base; default the one of training, else auto.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of the base: none, bnb-nf4, …; default the one of training.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR")] = Path("runs/evaluation"),
    force: Force = False,
) -> None:
    """Evaluate adapters and their base together; the same command goes on after a kill."""
    from llm_adapters.config.schema import EvaluateSection
    from llm_adapters.data.sources import BUILT_IN, SUFFIXES
    from llm_adapters.errors import DataError
    from llm_adapters.evaluation.protocols import PROTOCOLS
    from llm_adapters.evaluation.suite import Suite
    from llm_adapters.evaluation.task import GROUPS, expand, tasks
    from llm_adapters.report import write_evaluation_report
    from llm_adapters.runs.evaluation import common_template, evaluate_targets, read_targets

    settings = EvaluateSection.parse(
        {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "size": size, "beams": beams}, where="evaluate"
    )
    chosen = read_targets(targets, base, with_base=with_base)
    wording = template or common_template(chosen)
    wanted: dict[str, None] = {}
    for name in filter(None, map(str.strip, benchmarks.split(","))):
        file = name.endswith(SUFFIXES) or name in BUILT_IN or "/" in name or Path(name).suffix
        wanted |= dict.fromkeys([name] if file and name not in tasks() else expand([name]))
    if not wanted:
        raise DataError("no benchmark is named", allowed=[*GROUPS, *tasks(), "a data file"], mend="--benchmarks math")
    named = filter(None, map(str.strip, protocol.split(",")))
    protocols = list(dict.fromkeys(p for each in named for p in (("standard", "paper") if each == "both" else (each,))))
    unknown = [each for each in protocols if each not in PROTOCOLS]
    if unknown:
        allowed = [*PROTOCOLS, "both (standard and paper)"]
        raise DataError(f"there is no protocol '{unknown[0]}'", given=unknown[0], allowed=allowed)
    suites = [Suite.of(name, size, seed, wording, each) for name in wanted for each in protocols]
    with Progress() as progress:
        scores = evaluate_targets(
            chosen, suites, settings, out, progress, dtype=dtype, quantization=quantization, force=force
        )
    _table(scores)
    typer.echo(f"\nrows: {out / 'eval'}\nreport: {write_evaluation_report(out)}")


def _table(scores: list[Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("set", "protocol", "adapter", "rows", "accuracy", "95 % interval", "unparsed", "cut off", box=None)
    for score in scores:
        table.add_row(
            score.benchmark, score.protocol, score.adapter or "base", str(score.total), f"{score.accuracy:.1%}",
            f"{score.low:.1%} – {score.high:.1%}", f"{score.unparsed / score.total:.1%}",
            f"{score.cut / score.total:.1%}",
        )  # fmt: skip
    Console().print(table)
