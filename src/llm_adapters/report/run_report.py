"""``report.md`` of one run, made from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.errors import DataError
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
    text = "\n\n".join(
        [
            f"# {manifest['config']['name']}",
            *_accuracy(scores),
            _training(manifest),
            _examples(folder),
            _recipe(manifest),
        ]
    )
    path = folder / "report.md"
    path.write_text(text.strip() + "\n", encoding="utf-8")
    return path


def _accuracy(scores: list[dict[str, Any]]) -> list[str]:
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
    first = [score for score in scores if score["protocol"] == scores[0]["protocol"]]
    bases = {score["benchmark"]: score for score in first if score["adapter"] is None}
    pairs = [(bases[score["benchmark"]], score) for score in first if score["adapter"] is not None]
    verdicts = [_verdict(base, tuned, alone=len(pairs) == 1) for base, tuned in pairs]
    if not verdicts:
        return [table]
    return [table, " ".join([*verdicts, "One seed; the intervals cover the choice of test rows, not of the seed."])]


def _verdict(base: dict[str, Any], tuned: dict[str, Any], *, alone: bool) -> str:
    """Whether training changed the accuracy on one set, in a sentence."""
    apart = tuned["low"] > base["high"] or tuned["high"] < base["low"]
    points = 100 * (tuned["accuracy"] - base["accuracy"])
    return (
        f"Training changed the accuracy{'' if alone else ' on ' + tuned['benchmark']} by {points:+.1f} points; the "
        f"intervals {'do not overlap' if apart else 'overlap, so this run alone does not show a difference'}."
    )


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


def _examples(folder: Path) -> str:
    """The first question that training turned from wrong to right, and the first that it turned from right to wrong."""
    rows = [json.loads(line) for path in sorted(folder.glob("eval/*.jsonl")) for line in path.open(encoding="utf-8")]
    before = {(row["benchmark"], row["row"]): row for row in rows if row["adapter"] is None}
    pairs = [(before.get((row["benchmark"], row["row"])), row) for row in rows if row["adapter"] is not None]
    chosen = []
    for title, was, now in (("Now correct", False, True), ("No longer correct", True, False)):
        fitting = [
            (old, new) for old, new in pairs
            if old and (old["status"] == "correct") is was and (new["status"] == "correct") is now
        ]  # fmt: skip
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
