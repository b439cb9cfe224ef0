"""What it takes to do the study again: its versions, machines and digests, and where its own runs differ in them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence

from llm_adapters.report.collect import Collected, Run
from llm_adapters.report.table import Cell, Number, Table

_DATA = {"train": "training data", "validation": "validation data", "test": "test data", "encoded": "encoded data"}


def facts(run: Run) -> Iterator[tuple[str, str, str]]:
    """What a run depended on, as (kind, name, value); kinds are version, data, template, machine."""
    manifest = run.manifest
    for name, value in manifest.get("versions", {}).items():
        yield "version", name, str(value)
    yield "version", "code", str(manifest.get("code", ""))[:12]
    for key, name in _DATA.items():
        if digest := manifest.get("data", {}).get(key):
            yield "data", name, str(digest)[:12]
    yield "template", "template", str(run.config["data"]["template"])
    sketch = json.dumps(manifest.get("base", {}), sort_keys=True)
    yield "base", run.model, hashlib.sha256(sketch.encode()).hexdigest()[:12]
    for name, value in manifest.get("hardware", {}).items():
        yield "machine", name, str(value)


def reproducibility(found: Collected) -> list[Table]:
    """What all runs depended on, with the number of runs that had each value; and one row a run."""
    counts = Counter(fact for run in found.runs for fact in set(facts(run)))
    once = {(kind, name) for kind, name, _ in counts if kind not in ("data", "template", "base")}
    rows: list[list[Cell]] = [
        [kind, name, value, Number(count, f"{count:,}")]
        for (kind, name, value), count in sorted(counts.items(), key=lambda item: item[0][0])
    ]
    mixed = sorted(name for kind, name in once if sum(key[:2] == (kind, name) for key in counts) > 1)
    said = (
        f"Runs of this study differ in {', '.join(mixed)}: compare their numbers with care."
        if mixed
        else "All runs have the same versions, code and machine."
    )
    each: list[list[Cell]] = [
        [run.trial.id, run.seed, f"{run.manifest['learning_rate']:g}", *_digests(run)] for run in found.runs
    ]
    return [
        Table("environment", "Versions, machines, data", ["kind", "what", "value", "runs"], rows, said),
        Table(
            "manifests", "Manifests", ["trial", "seed", "learning rate", "training data", "test data", "code"], each,
            "SHA-256, first 12 digits; the whole is in each run's manifest.json, its configuration in config.yaml.",
        ),
    ]  # fmt: skip


def _digests(run: Run) -> Sequence[str]:
    data = run.manifest.get("data", {})
    return [str(value or "")[:12] for value in (data.get("train"), data.get("test"), run.manifest.get("code"))]
