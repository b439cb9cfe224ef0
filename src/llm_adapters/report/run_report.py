"""``report.md`` of one run, made from what lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.errors import DataError
from llm_adapters.evaluation.paired import holm, mcnemar_exact
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.runs.names import MANIFEST


def write_report(folder: Path) -> Path:
    """Write ``report.md`` of a complete run.

    Raises:
        DataError: the folder holds no complete run.
    """
    if not (folder / MANIFEST).is_file():
        begun = (folder / "config.yaml").is_file()
        raise DataError(
            f"'{folder}' {'holds no complete run' if folder.is_dir() else 'does not exist'}",
            mend="the command that began it goes on with it" if begun else "the folder of a run or an evaluation",
        )
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    summary = folder / "eval" / "summary.json"
    scores = json.loads(summary.read_text(encoding="utf-8"))["scores"] if summary.is_file() else []
    pairs = _pairs(folder, scores[0]["protocol"] if scores else "")
    text = "\n\n".join(
        [
            f"# {manifest['config']['name']}",
            *_accuracy(scores, pairs),
            _training(manifest),
            _examples(pairs),
            _recipe(manifest),
        ]
    )
    path = folder / "report.md"
    path.write_text(text.strip() + "\n", encoding="utf-8")
    return path


Pairs = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""Rows as the base answered them and as the adapter did."""


def _pairs(folder: Path, protocol: str) -> dict[str, Pairs]:
    """The pairs of each set, under one protocol."""
    rows = [row for path in sorted(folder.glob("eval/*.jsonl")) for row in read_rows(path)]
    rows = [row for row in rows if row["protocol"] == protocol]
    before = {(row["benchmark"], row["row"]): row for row in rows if row["adapter"] is None}
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row in rows:
        base = before.get((row["benchmark"], row["row"]))
        if row["adapter"] is not None and base is not None:
            found.setdefault(row["benchmark"], []).append((base, row))
    return dict(found)


def _accuracy(scores: list[dict[str, Any]], pairs: Mapping[str, Pairs]) -> list[str]:
    if not scores:
        return ["Trained without evaluation."]
    rows = [
        f"| {score['benchmark']} | {score['protocol']} | {score['adapter'] or 'base'} | {score['accuracy']:.1%} "
        f"| {score['low']:.1%} – {score['high']:.1%} | {score['correct']} / {score['total']} | {score['unparsed']} "
        f"| {score['cut']} | {_clean(score)} |"
        for score in scores
    ]
    table = "\n".join(
        [
            "| set | protocol | model | accuracy | 95 % interval | correct | unparsed | cut off | on clean rows |",
            "|---|---|---|---:|---|---:|---:|---:|---:|",
            *rows,
        ]
    )
    if not pairs:
        return [table]
    return [
        table,
        f"{_verdicts(pairs)} One seed; intervals and tests cover the choice of test rows, not of the seed.",
    ]


def _verdicts(changed: Mapping[str, Pairs]) -> str:
    """Whether training changed the accuracy, set by set, in sentences."""
    gained = {name: len(_fitting(pairs, was=False, now=True)) for name, pairs in changed.items()}
    lost = {name: len(_fitting(pairs, was=True, now=False)) for name, pairs in changed.items()}
    corrected = holm([mcnemar_exact(lost[name], gained[name]) for name in changed])
    said = []
    for (name, pairs), p in zip(changed.items(), corrected, strict=True):
        points = 100 * (gained[name] - lost[name]) / len(pairs)
        said.append(
            f"Training changed the accuracy{'' if len(changed) == 1 else ' on ' + name} by {points:+.1f} points: of "
            f"{len(pairs)} rows {gained[name]} became right and {lost[name]} no longer are (McNemar's exact test, "
            f"p = {p:.2g}{', this run alone does not show a difference' if p >= 0.05 else ''})."
        )
    return " ".join([*said, *(["p is corrected over the sets (Holm)."] if len(changed) > 1 else [])])


def _fitting(pairs: Pairs, *, was: bool, now: bool) -> Pairs:
    """The pairs of which the first is right or not, and the second."""
    return [
        (old, new) for old, new in pairs if (old["status"] == "correct") is was and (new["status"] == "correct") is now
    ]


def _clean(score: dict[str, Any]) -> str:
    """Accuracy on the rows that the training data do not give away."""
    if not score["clean_total"]:
        return "–"
    return f"{score['clean_correct'] / score['clean_total']:.1%} of {score['clean_total']}"


def _training(manifest: dict[str, Any]) -> str:
    training, parameters = manifest["training"], manifest["parameters"]
    share = parameters["trained"] / parameters["base"]
    lines = [
        ("trained parameters", f"{parameters['trained']:,} ({share:.2%} of {parameters['base']:,})"),
        ("steps", f"{training['steps']:,}"),
        ("loss, first and last tenth of the steps", f"{training['first_loss']:.3f} → {training['last_loss']:.3f}"),
        ("training", f"{training['seconds']:.0f} s, {training['tokens'] / training['seconds']:.0f} tokens/s"),
        ("whole run", f"{manifest['seconds']:.0f} s"),
        ("peak memory", f"{manifest['peak_memory_bytes'] / 2**30:.2f} GiB"),
        ("device", f"{manifest['hardware']['device']}, {manifest['hardware']['threads']} threads"),
    ]
    if members := manifest.get("cohort", {}).get("members"):
        lines.append(("time and memory", f"of a cohort of {len(members)}, trained at once"))
    return "## Cost\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in lines)


def _examples(found: Mapping[str, Pairs]) -> str:
    """The first question that training turned from wrong to right, and the first that it turned from right to wrong."""
    pairs = [pair for each in found.values() for pair in each]
    chosen = []
    for title, was, now in (("Now correct", False, True), ("No longer correct", True, False)):
        fitting = _fitting(pairs, was=was, now=now)
        if fitting:
            old, new = fitting[0]
            quoted = [f"> {line}" for line in new["question"].splitlines()]
            chosen.append(
                f"### {title}: {len(fitting)} of {len(pairs)} rows, the first of them\n\n" + "\n".join(quoted)
                + f"\n\nGold answer: {new['gold']}\n\nBase:\n\n{_block(old['completion'])}\n\n"
                f"Tuned:\n\n{_block(new['completion'])}"
            )  # fmt: skip
    return "## Examples\n\n" + "\n\n".join(chosen) if chosen else ""


def _block(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (nothing)"


def _recipe(manifest: dict[str, Any]) -> str:
    recipe = yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    return (
        f"## Recipe\n\n```yaml\n{recipe}```\n\nLearning rate used: {manifest['learning_rate']:g}. "
        f"Versions: {versions}. Code {manifest['code'][:12]}, training data {manifest['data']['train'][:12]}."
    )
