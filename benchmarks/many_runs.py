"""How long do the status and the report of a large study take?

A study of 1,000 finished runs, 200 rows each, made of drawn outcomes in the files that runs leave; then, each in a
process of its own as at the command line, ``study status`` and ``report`` with the drill-down and without it. Prints
seconds, imports included, and the size of the page.

    python benchmarks/many_runs.py [--runs 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from llm_adapters.study.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from studies import write_study


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        made(folder, options.runs)
        page = folder / "report" / "report.html"
        commands = {
            "study status": ["study", "status", str(folder)],
            "report": ["report", str(folder), "--out", str(page.parent)],
            "report --without-predictions": ["report", str(folder), "--out", str(page.parent), "--without-predictions"],
        }
        for name, command in commands.items():
            seconds = statistics.median(taken(command) for _ in range(options.rounds))
            size = f"   page {page.stat().st_size / 1e6:.1f} MB" if page.is_file() else ""
            print(f"{name:30} {seconds:5.2f} s{size}")


def made(folder: Path, runs: int) -> None:
    """Finished runs over four axes, and their ledger."""
    axes = {
        "method": ["lora", "series", "parallel", "prefix"], "placement": [f"place {i}" for i in range(10)],
        "size": ["4", "8", "16", "32", "64"], "seed": [str(i) for i in range(-(-runs // 200))],
    }  # fmt: skip
    record = write_study(folder, axes, lambda point: 0.3 + int(point["size"]) / 400, count=200)
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "large", "axes": axes, "objective": "accuracy"}))
    with Ledger(folder, create=True) as ledger:
        ledger.plan([(trial.id, trial.axes, {}) for trial in record.trials])
        for trial in record.trials:
            ledger.record(trial.id, "claimed", "w")
            ledger.record(trial.id, "done", "w", seconds=30.0, score=0.5)


def taken(command: list[str]) -> float:
    """Seconds of one command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "llm_adapters", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
