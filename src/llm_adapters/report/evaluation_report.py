"""``report.md`` of an evaluation: what each adapter can do, how sure that is, and what differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from llm_adapters.errors import DataError
from llm_adapters.evaluation.compare import ALPHA, compare
from llm_adapters.evaluation.paired import holm
from llm_adapters.evaluation.published import published
from llm_adapters.evaluation.rows import Row, read_rows
from llm_adapters.evaluation.score import Mean, Score, clean_interval
from llm_adapters.study.folder import MANIFEST

Table = list[list[str]]


def write_evaluation_report(folder: Path, *, beside: str | None = None) -> Path:
    """Write ``report.md`` of a complete evaluation; it holds no question of a test set.

    Args:
        folder: of the evaluation.
        beside: a model of the paper whose published accuracies are shown beside these (``LLaMA-7B``).

    Raises:
        DataError: the folder holds no complete evaluation.
    """
    if not (folder / MANIFEST).is_file():
        raise DataError(f"'{folder}' holds no complete evaluation", mend="evaluate to the end first")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    summary = json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
    scores = [Score(**record) for record in summary["scores"]]
    averages = [Mean(**record) for record in summary["means"]]
    rows = [row for path in sorted((folder / "eval").glob("*.jsonl")) for row in read_rows(path)]
    parts = [
        f"# Evaluation of {len({s.adapter for s in scores})} models on {len({s.benchmark for s in scores})} sets",
        _models(manifest),
        *(_accuracy(scores, averages, protocol) for protocol in _protocols(scores)),
        _reading(scores),
        _clean(scores),
        *(_paired(rows, protocol) for protocol in _protocols(scores)),
        _published(scores, beside) if beside else "",
        _how(manifest),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return path


def _models(manifest: dict[str, Any]) -> str:
    base = manifest["targets"][0][1]
    table = [["model", "method", "trained parameters", "trained on"]]
    for name, described in manifest["adapters"].items():
        methods = " + ".join(recipe["method"] for recipe in described["methods"])
        data = described["training"]
        trained = (
            "not known" if data is None else f"{data['source']}, {data['size'] or 'all'} rows, seed {data['seed']}"
        )
        table.append([name, methods, f"{described['parameters']:,}", trained])
    return f"Base: {base}, {manifest['dtype']}.\n\n" + _markdown(table)


def _accuracy(scores: Sequence[Score], averages: Sequence[Mean], protocol: str) -> str:
    """The paper's form: a row a model, a column a set."""
    sets = list(dict.fromkeys(s.benchmark for s in scores if s.protocol == protocol))
    found = {(s.adapter, s.benchmark): s for s in scores if s.protocol == protocol}
    mean = {m.adapter: m for m in averages if m.protocol == protocol}
    rows = {benchmark: score.total for (_, benchmark), score in found.items()}
    table = [["model", *(f"{name} ({rows[name]})" for name in sets), *(["mean"] if mean else [])]]
    for adapter in dict.fromkeys(s.adapter for s in scores):
        cells = [_cell(found[adapter, name]) for name in sets]
        table.append([adapter or "base", *cells, *([_cell(mean[adapter])] if mean else [])])
    return (
        f"## Accuracy, protocol `{protocol}`\n\n{_markdown(table)}\n\n"
        "Percent right of all rows, unparsed ones included, with 95 % Wilson intervals; the mean over sets with its "
        "95 % bootstrap interval over rows. One seed of training: intervals answer for the choice of rows alone."
    )


def _reading(scores: Sequence[Score]) -> str:
    """How often no answer could be read, and how often the limit of tokens cut the completion off."""
    sets = list(dict.fromkeys(s.benchmark for s in scores))
    table = [["model", "protocol", *sets]]
    for adapter in dict.fromkeys(s.adapter for s in scores):
        for protocol in _protocols(scores):
            own = {s.benchmark: s for s in scores if s.adapter == adapter and s.protocol == protocol}
            cells = [_shares(own[name]) if name in own else "" for name in sets]
            table.append([adapter or "base", protocol, *cells])
    return f"## Unparsed / cut off at the limit of tokens, percent of rows\n\n{_markdown(table)}"


def _clean(scores: Sequence[Score]) -> str:
    """Accuracy on what the training data do not give away."""
    known = [s for s in scores if s.clean_total is not None]
    if not known:
        return "## Clean subset\n\nThe adapters' training data are not known, so nothing can be said of contamination."
    sets = list(dict.fromkeys(s.benchmark for s in known))
    table = [["model", "protocol", *sets]]
    for adapter in dict.fromkeys(s.adapter for s in known):
        for protocol in _protocols(known):
            own = {s.benchmark: s for s in known if s.adapter == adapter and s.protocol == protocol}
            table.append([adapter or "base", protocol, *(_clean_cell(own.get(name)) for name in sets)])
    return (
        f"## Clean subset\n\n{_markdown(table)}\n\n"
        "Accuracy on the rows that the training data do not give away (same question once normalised, once its numbers "
        "are masked, or by most of its 8-grams), with how many rows those are; for the base, what no adapter's data "
        "give away."
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
        "p is McNemar's exact test on the rows of all sets, then corrected over these pairs (Holm); a set counts as "
        "evidence if its own exact test is below 0.05 after correction over the sets. The interval is a paired "
        "bootstrap over rows."
    )


def _published(scores: Sequence[Score], model: str) -> str:
    sets = list(dict.fromkeys(s.benchmark for s in scores))
    methods = ("prefix", "series", "parallel", "lora")
    values = {method: [published(model, method, name) for name in sets] for method in methods}
    if not any(value is not None for row in values.values() for value in row):
        raise DataError(f"the paper has no numbers of '{model}' on these sets", allowed=_PAPER_MODELS)
    table = [["method", *sets]]
    table += [[method, *("" if v is None else f"{v:.1f}" for v in row)] for method, row in values.items()]
    return (
        f"## Published numbers, {model}\n\n{_markdown(table)}\n\nHu et al. 2023, Tables 3 and 4: protocol `paper`, "
        "one seed, no intervals, training data that hold many of the test questions."
    )


_PAPER_MODELS = ("LLaMA-7B", "LLaMA-13B", "BLOOMz-7B", "GPT-J-6B")


def _how(manifest: dict[str, Any]) -> str:
    asked = dict.fromkeys((protocol, template) for _, protocol, template, _ in manifest["suites"])
    lines = [f"- protocol `{protocol}`: template `{template}`" for protocol, template in asked]
    beams = "4 beams for `paper`, else greedy" if manifest["settings"]["beams"] else "greedy"
    limit = manifest["settings"]["max_new_tokens"] or "each set's own"
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    hardware = manifest["hardware"]
    return (
        "## How\n\n" + "\n".join(lines) + f"\n- decoding: {beams}; limit of new tokens: {limit}\n"
        f"- {hardware['device']}, {hardware['threads']} threads; {versions}; code {manifest['code'][:12]}"
    )


def _protocols(scores: Sequence[Score]) -> list[str]:
    return list(dict.fromkeys(score.protocol for score in scores))


def _cell(value: Score | Mean) -> str:
    return f"{100 * value.accuracy:.1f} ({100 * value.low:.1f}–{100 * value.high:.1f})"


def _shares(score: Score) -> str:
    return f"{100 * score.unparsed / score.total:.1f} / {100 * score.cut / score.total:.1f}"


def _clean_cell(score: Score | None) -> str:
    if score is None or score.clean_total is None:
        return ""
    found = clean_interval(score)
    if found is None:
        return "no clean row"
    value, (low, high) = found
    return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f}), {score.clean_total}"


def _markdown(table: Table) -> str:
    head, *body = table
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])
