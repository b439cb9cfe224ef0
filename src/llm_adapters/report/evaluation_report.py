"""``report.md`` of an evaluation: what each adapter can do, how sure that is, and what differs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from llm_adapters.errors import DataError
from llm_adapters.evaluation.compare import ALPHA, compare
from llm_adapters.evaluation.outcomes import predictions
from llm_adapters.evaluation.paired import holm
from llm_adapters.evaluation.published import published
from llm_adapters.evaluation.rows import Row
from llm_adapters.evaluation.score import Mean, Score, clean_interval
from llm_adapters.evaluation.statistics import pooled_seeds
from llm_adapters.evaluation.task import tasks
from llm_adapters.report.accuracy import known_model
from llm_adapters.runs.names import MANIFEST

Table = list[list[str]]


def write_evaluation_report(folder: Path, *, beside: str | None = None) -> Path:
    """Write ``report.md`` of a complete evaluation; it holds no question of a test set.

    Args:
        folder: of the evaluation.
        beside: a model of the paper whose published accuracies are shown beside these (``LLaMA-7B``), for adapters
            of the same method.

    Raises:
        DataError: the folder holds no complete evaluation, or the paper has no such model.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(f"'{folder}' holds no complete evaluation", mend="evaluate to the end first")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    summary = json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
    scores = [Score(**record) for record in summary["scores"]]
    averages = [Mean(**record) for record in summary["means"]]
    rows = predictions(folder / "eval")
    methods: dict[str | None, str] = {
        name: described["methods"][0]["method"]
        for name, described in manifest["adapters"].items()
        if len(described["methods"]) == 1
    }
    parts = [
        f"# Evaluation of {_counted(len({s.adapter for s in scores}), 'model')} on "
        f"{_counted(len({s.benchmark for s in scores}), 'set')}",
        _models(manifest),
        _accuracy(scores, averages, known_model(beside) if beside else None, methods),
        _seeds(rows, manifest["adapters"], _protocols(scores)),
        *(_paired(rows, protocol) for protocol in _protocols(scores)),
        _how(manifest),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return path


def _trivial(scores: Sequence[Score]) -> str:
    """What always giving the most frequent answer of a set gets, and guessing among options."""
    sets = [tasks()[name] for name in dict.fromkeys(s.benchmark for s in scores) if name in tasks()]
    if not sets:
        return ""
    listed = ", ".join(
        f"{task.title} {100 * task.majority:.1f}" + (f" (guessing {100 * task.chance:.1f})" if task.chance else "")
        for task in sets
    )
    return f"Always giving a set's most frequent answer gets: {listed}. "


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _models(manifest: dict[str, Any]) -> str:
    base = manifest["targets"][0][1]
    table = [["model", "method", "trained parameters", "trained on"]]
    for name, described in manifest["adapters"].items():
        methods = " + ".join(recipe["method"] for recipe in described["methods"])
        data = described["training"]
        held_out = "" if data is None or not data.get("held_out") else f", {data['held_out']} of them held out"
        trained = (
            "not known"
            if data is None
            else f"{data['source']}, {data['size'] or 'all'} rows{held_out}, seed {data['seed']}"
        )
        table.append([name, methods, f"{described['parameters']:,}", trained])
    return f"Base: {base}, {_precision(manifest)}.\n\n" + _markdown(table)


def _precision(manifest: dict[str, Any]) -> str:
    """The dtype of the base, and how it was quantised."""
    return ", ".join(filter(None, [manifest["dtype"], manifest.get("quantization")]))


def _accuracy(
    scores: Sequence[Score], averages: Sequence[Mean], beside: str | None, methods: Mapping[str | None, str]
) -> str:
    """A row a set and model; the protocols side by side."""
    protocols = _protocols(scores)
    heads = [f"{protocol}: {head}" for protocol in protocols for head in ("accuracy", "unparsed", "cut off", "clean")]
    table = [["set (rows)", "model", *heads, *([f"{beside}, published"] if beside else [])]]
    found = {(s.benchmark, s.adapter, s.protocol): s for s in scores}
    any_printed = False
    for benchmark, adapter in dict.fromkeys((s.benchmark, s.adapter) for s in scores):
        each = [found.get((benchmark, adapter, protocol)) for protocol in protocols]
        total = next(score.total for score in each if score)
        printed = [_printed(published(beside, methods.get(adapter), benchmark))] if beside else []
        any_printed |= any(printed)
        cells = [cell for score in each for cell in _cells(score)]
        table.append([f"{benchmark} ({total})", adapter or "base", *cells, *printed])
    mean = {(m.adapter, m.protocol): m for m in averages}
    for adapter in dict.fromkeys(m.adapter for m in averages):
        cells = [
            cell
            for protocol in protocols
            for cell in (
                _percent(mean[adapter, protocol]),
                *_shares([s for s in scores if (s.adapter, s.protocol) == (adapter, protocol)]),
            )
        ]
        table.append([f"mean of {averages[0].sets}", adapter or "base", *cells, *([""] if beside else [])])
    known = any(score.clean_total is not None for score in scores)
    clean = (
        "Clean: accuracy on the rows that the training data do not give away (same question once normalised, once its "
        "numbers are masked, or by most of its 8-grams), and how many rows those are; for the base, what no adapter's "
        "data give away."
    )
    unknown = "The adapters' training data are not known, so nothing can be said of contamination."
    published_by = (
        f"Published: Hu et al. 2023, Tables 3 and 4, {beside} with the adapter's method, protocol `paper`, one seed, "
        "no intervals, training data that hold many of the test questions."
        if any_printed
        else f"The paper has no number of {beside} for these sets and methods."
    )
    return (
        f"## Accuracy\n\n{_markdown(table)}\n\n"
        "Percent right of all rows, unparsed ones included, with 95 % Wilson intervals; means over sets with 95 % "
        "bootstrap intervals over rows. Unparsed: no answer could be read. Cut off: the completion reached the limit "
        f"of tokens. {_trivial(scores)}{clean if known else unknown} "
        "The intervals answer for the choice of rows, not of the seed." + (f"\n\n{published_by}" if beside else "")
    )


def _seeds(rows: Sequence[Row], adapters: Mapping[str, Any], protocols: Sequence[str]) -> str:
    """Runs that differ in their seed alone, taken together."""
    groups: dict[str, dict[int, str]] = {}
    for name, described in adapters.items():
        if described.get("recipe"):
            groups.setdefault(described["recipe"], {})[described["training"]["seed"]] = name
    table = [["runs", "seeds", "protocol", "sets", "mean accuracy"]]
    for names in (list(group.values()) for group in groups.values() if len(group) > 1):
        for protocol in protocols:
            right: dict[str, dict[str, list[bool]]] = {}
            for row in rows:
                if row["protocol"] == protocol and row["adapter"] in names:
                    of = right.setdefault(row["benchmark"], {name: [] for name in names})
                    of[row["adapter"]].append(row["status"] == "correct")
            pooled = pooled_seeds([list(of.values()) for of in right.values()])
            low, high = pooled.interval
            table.append([
                ", ".join(names), str(len(names)), protocol, str(len(right)),
                f"{100 * pooled.value:.1f} ({100 * low:.1f}–{100 * high:.1f})",
            ])  # fmt: skip
    if len(table) == 1:
        return ""
    return (
        f"## Seeds pooled\n\n{_markdown(table)}\n\nRuns of one recipe with different seeds; the 95 % interval answers "
        "for the seeds and for the choice of rows."
    )


def _paired(rows: Sequence[Row], protocol: str) -> str:
    """Every pair of models on the same rows, corrected for the number of pairs."""
    by_model: dict[str | None, list[Row]] = {}
    for row in rows:
        if row["protocol"] == protocol:
            by_model.setdefault(row["adapter"], []).append(row)
    order = sorted(by_model, key=lambda name: (name is not None, name or ""))
    pairs = list(combinations(order, 2))
    if not pairs:
        return ""
    found = [compare(by_model[a], by_model[b]) for a, b in pairs]
    corrected = holm([comparison.p for comparison in found])
    table = [["A", "B", "B - A, points (mean of sets)", "95 % CI", "p", "p, Holm", "sets with evidence"]]
    for (a, b), comparison, p in zip(pairs, found, corrected, strict=True):
        value, interval = comparison.overall
        sets = [f"{s.benchmark} {s.difference:+.1f}" for s in comparison.sets if s.p_corrected < ALPHA]
        table.append([
            a or "base", b or "base", f"{value:+.1f}", f"{interval.low:+.1f} to {interval.high:+.1f}",
            f"{comparison.p:.2g}", f"{p:.2g}", ", ".join(sets) or "none",
        ])  # fmt: skip
    return (
        f"## Paired tests, protocol `{protocol}`\n\n{_markdown(table)}\n\n"
        "p tests the mean over sets by flipping signs at random, corrected over these pairs (Holm); a set counts as "
        "evidence if McNemar's exact test is below 0.05 after correction over the sets of its pair. The interval is a "
        "paired bootstrap over rows."
    )


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _how(manifest: dict[str, Any]) -> str:
    asked = dict.fromkeys((protocol, template) for _, protocol, template, _ in manifest["suites"])
    lines = [f"- protocol `{protocol}`: template `{template}`" for protocol, template in asked]
    beams = "4 beams for `paper`, else greedy" if manifest["settings"]["beams"] else "greedy"
    limit = manifest["settings"]["max_new_tokens"] or "each set's own"
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    hardware = manifest["hardware"]
    alone = manifest.get("alone")
    if alone:
        lines.append(
            f"- {_precision(manifest)} rounds differently in batches of different sizes: of {alone['rows']} rows "
            f"decoded again by themselves, {alone['differ']} gave another text"
        )
    return (
        "## How\n\n" + "\n".join(lines) + f"\n- decoding: {beams}; limit of new tokens: {limit}\n"
        f"- {hardware['device']}, {hardware['threads']} threads; {versions}; code {manifest['code'][:12]}"
    )


def _protocols(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(score.protocol for score in scores))


def _cells(score: Score | None) -> list[str]:
    if score is None:
        return ["", "", "", ""]
    found = clean_interval(score)
    clean = ""
    if found is not None:
        value, (low, high) = found
        clean = f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f}) of {score.clean_total}"
    if score.clean_total == 0:
        clean = "no clean row"
    return [_percent(score), *(f"{100 * n / score.total:.1f}" for n in (score.unparsed, score.cut)), clean]


def _shares(scores: Sequence[Score]) -> list[str]:
    """Means over sets of what stands beside the accuracy; of clean rows, where every set has some."""
    unparsed, cut = (
        f"{100 * statistics.fmean(count / score.total for count, score in zip(counts, scores, strict=True)):.1f}"
        for counts in ([score.unparsed for score in scores], [score.cut for score in scores])
    )
    clean = [s.clean_correct / s.clean_total for s in scores if s.clean_correct is not None and s.clean_total]
    return [unparsed, cut, f"{100 * statistics.fmean(clean):.1f}" if len(clean) == len(scores) else ""]


def _percent(value: Score | Mean) -> str:
    return f"{100 * value.accuracy:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def _markdown(table: Table) -> str:
    head, *body = table
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])
