"""The finished runs in the columns of peft's method_comparison, so that both tables can be laid side by side."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from llm_adapters.report.collect import Collected, Run
from llm_adapters.report.table import Cell, Table
from llm_adapters.runs.names import MANIFEST

_TYPES = {
    "lora": "LORA", "rslora": "LORA", "prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING", "p_tuning": "P_TUNING",
}  # fmt: skip


def method_comparison(found: Collected) -> Table:
    """A row a finished run and set.

    Accuracies are shares, memory and sizes bytes, times seconds. What is not measured here – average and 99th
    percentile of the memory, rows trained on where the configuration takes all – is empty. ``peft_type`` of a method
    that peft does not have is its name in capitals.
    """
    rows = [_row(run, i) for run in found.runs for i in range(len(run.tuned.scores) or 1)]
    heads = list(rows[0])
    return Table(
        "method_comparison", "Columns of peft's method_comparison", heads, [list(row.values()) for row in rows]
    )


def _row(run: Run, place: int) -> dict[str, Cell]:
    manifest, config, training = run.manifest, run.config, run.manifest["training"]
    score = run.tuned.scores[place] if run.tuned.scores else None
    versions: dict[str, Any] = manifest.get("versions", {})
    written = datetime.fromtimestamp((run.trial.folder / MANIFEST).stat().st_mtime, UTC)
    forgetting = manifest.get("forgetting") or {}
    values: dict[str, Any] = {
        "experiment_name": run.trial.id,
        "task_name": score.benchmark if score else config["data"]["train"],
        "model_id": run.model,
        "peft_type": _TYPES.get(run.method, run.method.upper()),
        "seed": config["seed"],
        "test_accuracy": score.accuracy if score else None,
        "test_accuracy_low": score.low if score else None,
        "test_accuracy_high": score.high if score else None,
        "protocol": score.protocol if score else None,
        "train_loss": training["last_loss"],
        "forgetting*": forgetting.get("difference"),
        "accelerator_memory_reserved_avg": None,
        "accelerator_memory_max": manifest["peak_memory_bytes"],
        "accelerator_memory_reserved_99th": None,
        "total_time": manifest["seconds"],
        "train_time": training["seconds"],
        "file_size": run.adapter_bytes,
        "num_trainable_params": manifest["parameters"]["trained"],
        "num_total_params": manifest["parameters"]["base"] + manifest["parameters"]["trained"],
        "train_samples": training["steps"] * config["train"]["batch_size"],
        "train_total_tokens": training["tokens"],
        "peft_version": None,
        "llm_adapters_version": versions.get("llm-adapters"),
        "transformers_version": versions.get("transformers"),
        "torch_version": versions.get("torch"),
        "package_info": json.dumps(versions),
        "system_info": json.dumps(manifest.get("hardware", {})),
        "peft_config": json.dumps(config["adapter"]),
        "train_config": json.dumps(config["train"]),
        "created_at": written.isoformat(timespec="seconds"),
    }
    return {name: None if value is None else str(value) for name, value in values.items()}
