"""Eight adapters trained at once on one base, against the same eight trained one after the other.

Two LoRA ranks, series, parallel, prefix, prompt, and one LoRA at two learning rates, each with its own seed and order,
on the bundled model and generated word problems. Every run by itself, and the cohort, is a process of its own, as
``llm-adapters train`` and ``llm-adapters cohort --train-only`` are; the cohort comes between the fourth and the fifth.
A forward pass of a run alone holds --micro-batch rows, one of the cohort --rows, of all eight together; of several
numbers of them each is a cohort of its own.

Prints the largest relative difference of a step's loss, peak memory of the cohort over that of the runs alone (the
largest and the median), and its time over the sum of theirs: of training alone, and of whole processes, which import
and load; wall time and processor time, of which the second hardly minds what else runs on the machine.

With --here all of them run in this process, one after the other, and times are those of training alone: for a machine
with a GPU, where memory is what torch allocated, whose time is short.

    python benchmarks/cohort.py [--steps 4] [--batch-size 8] [--micro-batch 8] [--rows 8 [64 …]] [--model FOLDER]
        [--threads 2] [--here]
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEMBERS = {
    "lora-8": ["adapter={method: lora, rank: 8}", "train.learning_rate=1e-3"],
    "lora-32": ["adapter={method: lora, rank: 32, alpha: 64}", "train.learning_rate=1e-3"],
    "series": ["adapter={method: series, bottleneck: 64}", "train.learning_rate=1e-3"],
    "parallel": ["adapter={method: parallel, bottleneck: 64}", "train.learning_rate=1e-3"],
    "prefix": ["adapter={method: prefix}", "train.learning_rate=3e-2"],
    "prompt": ["adapter={method: prompt}", "train.learning_rate=3e-2"],
    "lora-16-slow": ["adapter={method: lora, rank: 16}", "train.learning_rate=3e-4"],
    "lora-16-fast": ["adapter={method: lora, rank: 16}", "train.learning_rate=3e-3"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[8])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.folder, options, options.rows[0])
        return
    names = list(MEMBERS)
    with tempfile.TemporaryDirectory() as folder:
        if options.here:  # kernels are compiled and chosen in the first
            measured(names[:1], Path(folder) / "first", options)
        alone = [measured([name], Path(folder) / "alone", options) for name in names[:4]]
        cohorts = {rows: measured(names, Path(folder) / f"{rows}", options, rows) for rows in options.rows}
        alone += [measured([name], Path(folder) / "alone", options) for name in names[4:]]
        for rows, cohort in cohorts.items():
            report(Path(folder), alone, rows, cohort, options)


def work(names: Sequence[str], folder: Path, options: argparse.Namespace, rows: int) -> None:
    """Train one run by itself, or several as a cohort, in this process."""
    import torch

    from llm_adapters.cli.progress import Progress
    from llm_adapters.runs.cohort import execute_cohort
    from llm_adapters.runs.run import execute, read_config

    torch.set_num_threads(options.threads)
    configs = [
        read_config(None, [
            f"name={name}", f"seed={list(MEMBERS).index(name)}", f"data.size={options.steps * options.batch_size}",
            f"train.batch_size={options.batch_size}", f"train.micro_batch={options.micro_batch}", "train.epochs=1",
            "train.warmup=1", f"model.source={options.model}", *MEMBERS[name],
        ])
        for name in names
    ]  # fmt: skip
    with Progress() as progress:
        if len(configs) == 1:
            execute(configs[0], folder / names[0], progress, score=False)
        else:
            folders = [folder / name for name in names]
            failed = execute_cohort(configs, folders, progress, score=False, rows=rows)
            assert failed == [None] * len(configs)


def measured(names: Sequence[str], folder: Path, options: argparse.Namespace, rows: int = 0) -> dict[str, Any]:
    """Seconds of a process that trains ``names``, those of its training, and its peak memory in bytes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if options.here:
        from llm_adapters.runs.manifest import forget_peak_memory

        gc.collect()
        forget_peak_memory()
        work(names, folder, options, rows)
    else:
        subprocess.run(
            [sys.executable, __file__, "--worker", *names, "--folder", str(folder), "--steps", str(options.steps),
             "--batch-size", str(options.batch_size), "--micro-batch", str(options.micro_batch),
             "--rows", str(rows), "--model", options.model, "--threads", str(options.threads)],
            check=True,
        )  # fmt: skip
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    manifests = [json.loads((folder / name / "manifest.json").read_text()) for name in names]
    return {
        "wall": wall,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "training": max(manifest["training"]["seconds"] for manifest in manifests),
        "peak": max(manifest["peak_memory_bytes"] for manifest in manifests),
    }


def report(
    folder: Path, alone: Sequence[dict[str, Any]], rows: int, cohort: dict[str, Any], options: argparse.Namespace
) -> None:
    print(
        f"{len(MEMBERS)} adapters, {options.steps} steps of {options.batch_size} rows each, {options.micro_batch} in a "
        f"forward pass alone, {rows} in the cohort, {options.threads} threads"
    )
    worst = 0.0
    for name, own in zip(MEMBERS, alone, strict=True):
        found, wanted = (losses(folder / side / name) for side in (f"{rows}", "alone"))
        apart = max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))
        worst = max(worst, apart)
        print(
            f"  {name:13} alone {own['training']:6.1f} s training, {own['wall']:6.1f} s in all, "
            f"{own['peak'] / 2**30:.2f} GiB; loss {wanted[0]:.3f} to {wanted[-1]:.3f}, "
            f"in the cohort within {apart:.1e}"
        )
    print(
        f"  the cohort    {cohort['training']:12.1f} s training, {cohort['wall']:6.1f} s in all, "
        f"{cohort['peak'] / 2**30:.2f} GiB"
    )
    print(f"largest relative difference of a step's loss: {worst:.1e} (wanted: at most 1e-5)")
    peaks = [own["peak"] for own in alone]
    print(
        f"peak memory, cohort / alone: {cohort['peak'] / max(peaks):.2f} × the largest, "
        f"{cohort['peak'] / statistics.median(peaks):.2f} × the median (wanted: at most 1.3)"
    )
    compared = {"training": "training"}
    if not options.here:
        compared |= {"wall": "whole processes", "processor": "processor time of these"}
    for key, what in compared.items():
        total = sum(own[key] for own in alone)
        print(f"{what}, cohort / sum of the eight: {cohort[key]:.1f} s / {total:.1f} s = {cohort[key] / total:.2f}")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
