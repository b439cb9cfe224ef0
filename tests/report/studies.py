"""Studies whose numbers are known: made from drawn outcomes, in the files that runs leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from llm_adapters.evaluation.rows import Row
from llm_adapters.evaluation.score import score, write_summary
from llm_adapters.study.trials import StudyRecord, TrialRecord

HOSTILE = 'She said "7"</script><script>alert(1)</script><img src=x onerror=alert(2)>'
Chance = Callable[[dict[str, str]], float]


def manifest(axes: dict[str, str], *, forgetting: bool = True) -> dict[str, Any]:
    """Of a run at a point of the axes."""
    size = int(axes.get("size", "8"))
    return {
        "config": {
            "name": "-".join(axes.values()), "seed": int(axes.get("seed", "0")),
            "model": {"source": "tiny/llama-7b"}, "adapter": {"method": axes.get("method", "lora"), "rank": size},
            "data": {"train": "math10k", "size": 640, "template": "plain"},
            "train": {"epochs": 3, "batch_size": 16},
            "evaluate": {"data": "gsm8k"},
        },
        "learning_rate": 3e-4,
        "training": {"steps": 40, "tokens": 5000, "seconds": 10.0 + size, "first_loss": 2.0, "last_loss": 1.0},
        "parameters": {"trained": 1000 * size, "base": 1_000_000}, "base": {"model": "tiny", "sketch": [0.5]},
        "data": {"train": "a" * 64, "validation": None, "encoded": "b" * 64, "test": "c" * 64},
        "forgetting": {"text": "builtin", "digest": "d" * 64, "tokens": 900, "before": 3.0, "after": 3.1,
                       "difference": 0.1, "low": 0.05, "high": 0.15} if forgetting else None,
        "seconds": 30.0, "peak_memory_bytes": 2**30 + size * 2**20,
        "versions": {"torch": "2.13.0", "python": "3.11.2"}, "hardware": {"device": "cpu", "threads": 2},
        "code": "e" * 64,
    }  # fmt: skip


def rows(adapter: str | None, name: str, right: Sequence[bool], *, protocol: str = "standard") -> list[Row]:
    """Prediction rows; the first tenth of the set is given away, the last wrong row is unparsed."""
    last = max((i for i, each in enumerate(right) if not each), default=-1)
    return [
        {
            "adapter": adapter, "benchmark": name, "protocol": protocol, "row": i, "gold": str(i),
            "question": f"What is {i} < {i + 1} & more?", "completion": HOSTILE if i == 0 else f"The answer is {i}.",
            "answer": str(i) if each else None, "status": "correct" if each else "unparsed" if i == last else "wrong",
            "tokens": 5, "stopped": i != last, "leaked": i < len(right) / 10,
        }
        for i, each in enumerate(right)
    ]  # fmt: skip


def write_run(folder: Path, axes: dict[str, str], base: dict[str, Any], tuned: dict[str, Any], **changed: Any) -> Path:
    """A finished run's folder; ``base`` and ``tuned`` hold, by set, what was answered right."""
    (folder / "eval").mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"0" * 1000)
    scores = []
    for name, right in tuned.items():
        both = [*(rows(None, name, base[name]) if name in base else []), *rows("tuned", name, right)]
        (folder / "eval" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
        scores += [score(both, name, "standard", who) for who in ([None] if name in base else []) + ["tuned"]]
    write_summary(scores, [], folder / "eval" / "summary.json")
    losses = [{"step": step, "loss": 1 + 1 / step} for step in range(1, 41)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in losses))
    (folder / "manifest.json").write_text(json.dumps(manifest(axes) | changed))
    return folder


def write_study(
    folder: Path, axes: dict[str, list[str]], chance: Chance, *, count: int = 200, sets: Sequence[str] = ("gsm8k",),
    name: str = "placement", draw: int = 0, **changed: Any,
) -> StudyRecord:  # fmt: skip
    """A study over a grid; ``chance`` of a point is that of answering right, 0.2 that of the base."""
    random = np.random.default_rng(draw)
    base = {each: random.random(count) < 0.2 for each in sets}
    trials = []
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        tuned = {each: random.random(count) < chance(point) for each in sets}
        path = write_run(folder / "runs" / "-".join(values), point, base, tuned, **changed)
        trials.append(TrialRecord(path.name, point, path, "done", None, 12.0))
    return StudyRecord(name, folder, axes, trials, {"name": name, "axes": axes})
