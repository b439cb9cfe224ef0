"""The tables of accuracy: in the paper's form, and with everything beside each number."""

from __future__ import annotations

from collections.abc import Sequence

from llm_adapters.errors import DataError
from llm_adapters.evaluation.published import COMMONSENSE, MATH, TABLE_3, TABLE_4, published
from llm_adapters.report.pooled import MEAN, Configuration, Result, benchmarks, protocols
from llm_adapters.report.table import Cell, Number, Range, Table, percent, share

INTERVALS = (
    "Percent right of all rows, unparsed ones included, with 95 % intervals. One seed: the interval answers for the "
    "choice of rows alone, not for training again. Several seeds: for both; of two seeds such intervals held the truth "
    "in 90 % of simulated studies, of three in 94 %."
)
MODELS = list(dict.fromkeys(row.model for row in (*TABLE_3, *TABLE_4) if row.method))


def known_model(model: str) -> str:
    """A model of the paper as the paper writes it.

    Raises:
        DataError: the paper has no such model.
    """
    fitting = [name for name in MODELS if name.casefold() == model.casefold()]
    if not fitting:
        raise DataError(f"the paper has no adapters of '{model}'", given=model, allowed=MODELS)
    return fitting[0]


_IN_PAPER = {"series_input": "series"}
"""The method that the paper means, where the reference computes it otherwise than the formula says."""


def same_model(source: str) -> str | None:
    """The model of the paper that a base's source names (``huggyllama/llama-7b``), if any."""
    own = source.rpartition("/")[2].casefold().removesuffix("-hf").replace("bloomz-7b1", "bloomz-7b")
    return next((name for name in MODELS if own == name.casefold()), None)


def paper_form(points: Sequence[Configuration], protocol: str, *, clean: bool = False) -> Table:
    """A row a configuration, a column a set and the mean, as in Tables 3 and 4 of Hu et al. 2023.

    Args:
        points: of the study.
        protocol: whose results.
        clean: on the rows that the training data do not give away.
    """
    sets = _in_order(benchmarks(points, protocol))
    columns = [*sets, *([MEAN] if len(sets) > 1 else [])]
    rows: list[list[Cell]] = []
    for point in points:
        results = [point.results.get((protocol, name)) for name in columns]
        if any(results):
            rows.append([point.label, point.seeds, *(_cell(result, clean=clean) for result in results)])
    rows.sort(key=lambda row: (row[1] != "–", -row[-1].value if isinstance(row[-1], Range) else 1))
    part = " on clean rows" if clean else ""
    return Table(
        f"accuracy-{protocol}{'-clean' if clean else ''}", f"Accuracy{part}, protocol {protocol}",
        ["configuration", "seeds", *columns], rows,
        "Rows that the training data do not give away; for the base, that no evaluated adapter's data do."
        if clean else INTERVALS,
    )  # fmt: skip


def beside(points: Sequence[Configuration], model: str | None) -> Table:
    """A row a configuration, set and protocol: unparsed and cut-off shares, clean rows, the paper's number.

    Args:
        points: of the study.
        model: of the paper; None takes for each configuration the model that its base is, if the paper has it.
    """
    rows: list[list[Cell]] = []
    for point in points:
        from_paper = model or same_model(point.model)
        for (protocol, name), result in point.results.items():
            if name == MEAN:
                continue
            printed = published(from_paper, _IN_PAPER.get(point.method, point.method), name) if from_paper else None
            accuracy = percent(result.accuracy)
            rows.append([
                point.label, name, protocol, Number(result.rows, f"{result.rows:,}"), point.seeds, accuracy,
                share(result.unparsed), share(result.cut), _cell(result, clean=True),
                None if result.clean_rows is None else Number(result.clean_rows, f"{result.clean_rows:,.0f}"),
                None if printed is None else Number(printed, f"{printed:.1f}"),
                None if printed is None else Range(
                    accuracy.value - printed, accuracy.low - printed, accuracy.high - printed, sign=True
                ),
            ])  # fmt: skip
    heads = [
        "configuration", "set", "protocol", "rows", "seeds", "accuracy", "unparsed", "cut off", "clean", "clean rows",
        "published", "difference",
    ]  # fmt: skip
    note = (
        "Unparsed: no answer could be read; cut off: the limit of tokens was reached; both in percent of rows. Clean: "
        "on rows that the training data do not give away; empty where those data are not known."
    )
    if any(row[-1] is not None for row in rows):
        of = f" {model}" if model else " of the same base"
        note += (
            f" Published: Hu et al. 2023, Tables 3 and 4,{of} with the same method: one seed, no interval, "
            "protocol paper, training data that hold many of the test questions. Intervals of differences are of this "
            "study alone."
        )
    else:
        rows, heads = [row[:-2] for row in rows], heads[:-2]
    return Table("beside", "Every set, with what stands beside its number", heads, rows, note)


def contamination(points: Sequence[Configuration]) -> Table | None:
    """What contaminated what: of each training source and set, the rows that are given away; None if not known."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for point in (point for point in points if point.runs):
        for run, outcomes in zip(point.runs, point.outcomes, strict=True):
            for each in outcomes:
                if each.leaked is not None:
                    given = each.leaked.count("1")
                    key = (run.data, each.benchmark)
                    found[key] = max(found.get(key, (0, 0)), (given, len(each.leaked)))
    if not found:
        return None
    rows: list[list[Cell]] = [
        [source, name, Number(given, f"{given:,}"), Number(total, f"{total:,}"), share(given / total)]
        for (source, name), (given, total) in found.items()
    ]
    return Table(
        "contamination", "What the training data give away", ["trained on", "set", "rows given away", "of", "percent"],
        rows,
        "The same question once normalised, once its numbers are masked, or by most of its 8-grams; where seeds draw "
        "other rows, the most of any seed.",
    )  # fmt: skip


def accuracy_tables(points: Sequence[Configuration], model: str | None) -> list[Table]:
    """All tables of accuracy."""
    tables = []
    for protocol in protocols(points):
        tables.append(paper_form(points, protocol))
        if any(result.clean for (own, _), result in _trained(points) if own == protocol):
            tables.append(paper_form(points, protocol, clean=True))
    return [*tables, beside(points, model)]


def _trained(points: Sequence[Configuration]) -> list[tuple[tuple[str, str], Result]]:
    return [item for point in points if point.runs for item in point.results.items()]


def _cell(result: Result | None, *, clean: bool) -> Cell:
    estimate = None if result is None else result.clean if clean else result.accuracy
    return None if estimate is None else percent(estimate)


def _in_order(names: Sequence[str]) -> list[str]:
    """Sets of the paper in its order, then others."""
    order = {name: i for i, name in enumerate((*MATH, *COMMONSENSE))}
    return sorted(names, key=lambda name: order.get(name, len(order)))
