"""Does ``llm-adapters plan`` predict what training then takes? Peak memory and time, predicted and measured.

Every prediction and every training is a process of its own; they take turns --rounds times, because a shared machine's
speed changes: time is compared between medians. Memory is the peak of the process's resident memory.

    python benchmarks/plan.py [--rounds 1] [--set train.batch_size=8 …] [--methods lora,series,parallel,prefix]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = ["data.size=96", "train.epochs=1", "train.warmup=1", "train.learning_rate=1e-3"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", default="lora,series,parallel,prefix")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--worker", choices=["plan", "train"])
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker, options.changes)))
        return
    print(f"recipe: {' '.join([*RECIPE, *options.changes])}\n")
    print("| method | peak memory, GB: predicted | measured | error | seconds: predicted | measured | error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for method in options.methods.split(","):
        changes = [*RECIPE, f"adapter.method={method}", *options.changes]
        rounds = [{side: started(side, changes) for side in ("plan", "train")} for _ in range(options.rounds)]
        middle = {
            (side, key): statistics.median(found[side][key] for found in rounds)
            for side in ("plan", "train")
            for key in ("peak", "seconds")
        }
        cells = []
        for key, scale in (("peak", 1e9), ("seconds", 1.0)):
            predicted, measured = middle["plan", key] / scale, middle["train", key] / scale
            cells += [f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured - 1:+.1%}"]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def started(side: str, changes: list[str]) -> dict[str, Any]:
    sets = [part for change in changes for part in ("--set", change)]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", side, *sets], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def work(side: str, changes: list[str]) -> dict[str, Any]:
    from llm_adapters.runs.plan import plan
    from llm_adapters.runs.run import execute, read_config

    config = read_config(None, changes)
    if side == "plan":
        planned = plan(config)
        memory = dict(planned.memory)
        outside = memory.get("CUDA context, workspaces", 0)  # of torch's allocator, whose peak a run records
        return {"peak": planned.peak - outside, "seconds": planned.seconds, "memory": memory}
    with tempfile.TemporaryDirectory() as folder:
        execute(config, Path(folder) / "run", Silent(), score=False)
        manifest = json.loads((Path(folder) / "run" / "manifest.json").read_text())
    return {"peak": manifest["peak_memory_bytes"], "seconds": manifest["training"]["seconds"]}


class Silent:
    """Watches a run without a word."""

    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...
    def note(self, text: str) -> None: ...


if __name__ == "__main__":
    main()
