"""One study carried out twice: its runs one after the other, and all together as a cohort on one frozen base.

Four methods on the ``math`` mixture, --size rows each, evaluated on --evaluated rows of three sets. Each way is the
command ``llm-adapters study`` in a process of its own. Prints every run's accuracy both ways with the rows that were
judged differently, the largest relative difference of a step's loss, and the ratios of wall time and peak memory.

    LLM_ADAPTERS_DATA=DIR python benchmarks/executors.py [--size 128] [--evaluated 16]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

SMALL = Path(__file__).parents[1] / "configs" / "studies" / "small.yaml"
METHODS = {
    "lora": {"adapter": {"method": "lora", "rank": 16, "alpha": 32}},
    "series": {"adapter": {"method": "series", "bottleneck": 64}},
    "parallel": {"adapter": {"method": "parallel", "bottleneck": 64}},
    "prefix": {"adapter": {"method": "prefix", "tokens": 10}},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--evaluated", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study.yaml"
        run = {"data.size": options.size, "evaluate.size": options.evaluated}
        study.write_text(yaml.safe_dump({
            "name": "executors", "base": str(SMALL), "axes": {"method": METHODS},
            "run": {section: {field: value} for key, value in run.items() for section, field in [key.split(".")]},
        }))  # fmt: skip
        ways = {"sequential": (), "cohort": ("--cohort", str(len(METHODS)))}
        report({name: carried_out(study, Path(place) / name, extra) for name, extra in ways.items()})


class Way(NamedTuple):
    """How a study went: seconds of the whole command, and its runs by method."""

    seconds: float
    runs: dict[str, Run]


class Run(NamedTuple):
    """Peak memory in bytes, the loss of every step, and of every row of every set whether it was right."""

    peak: int
    losses: list[float]
    right: list[tuple[str, Any, bool]]


def carried_out(study: Path, out: Path, extra: tuple[str, ...]) -> Way:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llm_adapters", "study", str(study), "--out", str(out), *extra],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    print(f"  {' '.join(extra) or 'one after the other'}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return Way(seconds, dict(read(folder) for folder in sorted((out / "runs").iterdir())))


def read(folder: Path) -> tuple[str, Run]:
    """A run's method, and the run."""
    manifest = json.loads((folder / "manifest.json").read_text())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [
        (path.stem, row["row"], row["status"] == "correct")
        for path in sorted((folder / "eval").glob("*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
        if row["adapter"] is not None  # the base's rows are the same either way
    ]
    losses = [step["loss"] for step in steps if "loss" in step]
    return manifest["config"]["adapter"]["method"], Run(manifest["peak_memory_bytes"], losses, rows)


def report(ways: dict[str, Way]) -> None:
    one, joint = ways["sequential"], ways["cohort"]
    worst = 0.0
    for method, alone in one.runs.items():
        member = joint.runs[method]
        worst = max(worst, *(abs(a - b) / b for a, b in zip(member.losses, alone.losses, strict=True)))
        scores = [sum(right for _, _, right in run.right) for run in (alone, member)]
        differ = len(set(alone.right) - set(member.right))
        print(
            f"  {method:9} right answers of {len(alone.right)}: {scores[0]} one after the other, {scores[1]} in the "
            f"cohort; rows judged differently: {differ}"
        )
    print(f"largest relative difference of a step's loss: {worst:.1e}")
    peaks = [max(run.peak for run in way.runs.values()) for way in (one, joint)]
    ratio = joint.seconds / one.seconds
    print(f"wall time, cohort / sequential: {joint.seconds:.0f} s / {one.seconds:.0f} s = {ratio:.2f}")
    print(f"peak memory: {peaks[1] / 2**30:.2f} GiB / {peaks[0] / 2**30:.2f} GiB = {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
