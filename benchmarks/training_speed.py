"""How fast does it train, in how much memory? This engine against peft + ``transformers.Trainer``, and ``adapters``.

One base, one recipe, one seed; every side is given the same rows in the same batches (GSM8K rows of the ``math``
mixture, real lengths, drawn at random) and starts from the same adapter weights:

    ours       this engine: packed micro-batches
    undropped  with --dropout: this engine without
    compiled   with --compile: this engine with ``train.compile``
    quantised  with --quantization: this engine over the quantised base
    trainer    LoRA: peft under transformers.Trainer; series and parallel: the ``adapters`` library under its trainer,
               if --adapters-python names an interpreter that has it
    qlora      LoRA, with --quantization: peft under transformers.Trainer over the quantised base
    liger      LoRA, on a GPU: as trainer, with Liger's kernels, where they are installed

Sides take turns --rounds times. Prints medians of tokens a second (padding not counted) and of peak memory, their
ratios, the largest relative difference of a step's loss (LoRA without dropout), and the share of the limit: 4·N
operations a token at the matrix rate measured in the same process, on a CPU before and after each step.

    LLM_ADAPTERS_DATA=DIR python benchmarks/training_speed.py [--method lora] [--steps 6] [--micro-batch 4] [--rounds 3]
        [--dropout 0.05] [--train-on all] [--compile] [--peer-micro-batch 1]

The base is the bundled model. On a GPU, one of LLaMA-7B's shape with random weights; this engine uses Liger's kernels
there by itself. A machine without the data is given the examples in a file that --save-examples wrote on one that has
it:

    LLM_ADAPTERS_DATA=DIR python benchmarks/training_speed.py --steps 10 --save-examples FILE
    python benchmarks/training_speed.py --shape llama-7b --dtype bfloat16 --micro-batch 16 --examples FILE
        [--compile] [--quantization bnb-nf4] [--sides ours,trainer] [--profile]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from random_base import SHAPES
from training_sides import BATCH, work

SIDES = ["ours", "undropped", "compiled", "quantised", "trainer", "qlora", "liger"]


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(work(options.worker, json.loads(options.plan.read_text()))))
        return
    if options.save_examples:
        options.save_examples.write_text(json.dumps(examples(options)))
        return
    sides(options)  # or it is refused now
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        plan.write_text(json.dumps(planned(options, Path(folder) / "base")))
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides(options)}
        for _ in range(options.rounds):
            for side, python in sides(options).items():
                runs[side].append(started(python, side, plan))
                steps, peak = runs[side][-1]["steps"], runs[side][-1]["peak"] / 2**30
                told = " ".join(f"{seconds:.3f}" for seconds in steps)
                print(f"{side}: steps of {told} s, {peak:.2f} GiB", file=sys.stderr, flush=True)
        report(options, runs, json.loads(plan.read_text()))


def sides(options: argparse.Namespace) -> dict[str, str]:
    """What is compared, and the Python that runs each."""
    lora = options.method == "lora"
    found = {
        "ours": sys.executable,
        "undropped": sys.executable if options.dropout else None,
        "compiled": sys.executable if options.compile else None,
        "quantised": sys.executable if options.quantization else None,
        "trainer": sys.executable if lora else options.adapters_python,
        "qlora": sys.executable if lora and options.quantization else None,
        "liger": sys.executable if lora and torch.cuda.is_available() and find_spec("liger_kernel") else None,
    }
    chosen = options.sides.split(",") if options.sides else [side for side in SIDES if found[side]]
    for side in chosen:
        if not found.get(side):
            raise SystemExit(
                f"there is no side {side!r} with these options; there are {', '.join(filter(found.get, found))}"
            )
    return {side: python for side in chosen if (python := found[side])}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="lora", choices=["lora", "series", "parallel", "prefix", "prompt"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--peer-micro-batch", type=int, help="of the peer, if it is not to be the same")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--train-on", default="completion", choices=["completion", "all"])
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sides", help=f"of {', '.join(SIDES)}, those to run; all that can run, if not said")
    parser.add_argument("--adapters-python")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--examples", type=Path)
    parser.add_argument("--save-examples", type=Path)
    parser.add_argument("--worker", choices=SIDES)
    parser.add_argument("--plan", type=Path)
    return parser.parse_args()


def examples(options: argparse.Namespace) -> dict[str, Any]:
    """The rows, encoded with the bundled tokenizer, in batches."""
    from llm_adapters.data.example import Example
    from llm_adapters.data.templates import get_template
    from llm_adapters.model import load_tokenizer

    folder = os.environ.get("LLM_ADAPTERS_DATA")
    if folder is None:
        raise SystemExit("set LLM_ADAPTERS_DATA to the folder that holds math_train.json, or give --examples FILE")
    rows = json.loads((Path(folder) / "math_train.json").read_text())
    rows = random.Random(0).sample([row for row in rows if row["source"] == "gsm8k"], options.steps * BATCH)
    tokenizer, template = load_tokenizer(), get_template("alpaca")
    encoded = [
        template.encode(
            tokenizer,
            Example(instruction=row["instruction"], input="", output=row["output"], answer=row["answer"]),
            max_length=512,
            train_on=options.train_on,
        )
        for row in rows
    ]
    found = [{"input_ids": e.input_ids, "labels": e.labels} for e in encoded]
    return {"pad": tokenizer.pad_token_id, "batches": [found[i : i + BATCH] for i in range(0, len(found), BATCH)]}


def planned(options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """What every side is given: the base, saved into ``base`` unless it is random, the batches, the recipe."""
    given = json.loads(options.examples.read_text()) if options.examples else examples(options)
    if options.shape:  # a random model: any ids will do
        most = SHAPES[options.shape]["vocab_size"]
        given["pad"] %= most
        for row in (row for batch in given["batches"] for row in batch):
            row["input_ids"] = [i % most for i in row["input_ids"]]
            row["labels"] = [i % most if i >= 0 else i for i in row["labels"]]
    return {
        **given,
        "method": options.method,
        "dropout": options.dropout,
        "quantization": options.quantization,
        "profile": options.profile,
        "micro_batch": options.micro_batch,
        "peer_micro_batch": options.peer_micro_batch or options.micro_batch,
        "warm": 1 if options.shape is None else min(4, len(given["batches"]) - 1),  # steps that are not timed
        "dtype": options.dtype,
        "shape": options.shape,
        "base": None if options.shape else str(saved(base, options.dtype)),
    }


def saved(base: Path, dtype: str) -> Path:
    """The bundled model in a folder that transformers 4 reads too."""
    import llm_adapters as la

    for part in la.load_model(dtype=dtype):
        part.save_pretrained(base)
    written = json.loads((base / "config.json").read_text())
    written.setdefault("rope_theta", written.get("rope_parameters", {}).get("rope_theta"))
    (base / "config.json").write_text(json.dumps(written))
    return base


def started(python: str, side: str, plan: Path) -> dict[str, Any]:
    """One side, in a process of its own: on a CPU memory is what the process had at most. On a GPU it is what torch
    allocated, so sides take turns in this process, but for Liger's, which changes transformers itself.
    """
    if torch.cuda.is_available() and python == sys.executable and side != "liger":
        return work(side, json.loads(plan.read_text()))
    if torch.cuda.is_available():
        gc.collect()  # what the side before has left
        torch.cuda.empty_cache()
    command = [python, __file__, "--worker", side, "--plan", str(plan)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], plan: dict[str, Any]) -> None:
    tokens = sum(len(row["input_ids"]) for batch in plan["batches"][plan["warm"] :] for row in batch)
    print(
        f"{options.method}: {len(plan['batches'])} steps of {BATCH} rows, {tokens} tokens timed, micro-batches of "
        f"{options.micro_batch} (the peer's: {plan['peer_micro_batch']}), "
        f"dropout {options.dropout}, loss on {options.train_on}, {torch.get_num_threads()} "
        f"threads, median of {options.rounds} rounds"
    )
    speed, peak = {}, {}
    for side, results in runs.items():
        speed[side] = statistics.median(tokens / result["seconds"] for result in results)
        peak[side] = statistics.median(result["peak"] for result in results)
        share = statistics.median(4 * result["parameters"] * tokens / result["possible"] for result in results)
        print(
            f"  {side:9} {speed[side]:7.1f} tokens/s   {peak[side] / 2**30:5.2f} GiB   share of the limit {share:.2f}"
        )
        print(f"           losses {' '.join(f'{loss:.4f}' for loss in results[0]['losses'])}")
    pairs = [("ours", other) for other in runs] + [("compiled", "trainer"), ("quantised", "qlora")]
    for side, other in [(side, other) for side, other in pairs if side in runs and other in runs and side != other]:
        print(f"{side}/{other}: speed {speed[side] / speed[other]:.2f}, memory {peak[side] / peak[other]:.2f}")
        if options.method == "lora" and other in ("trainer", "qlora") and not options.dropout:
            steps = zip(runs[side][0]["losses"], runs[other][0]["losses"], strict=True)
            print(f"    largest relative difference of a step's loss {max(abs(a - b) / b for a, b in steps):.1e}")


if __name__ == "__main__":
    main()
