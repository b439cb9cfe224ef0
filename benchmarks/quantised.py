"""What does a quantised base cost and save? Step time and weight memory of LoRA on every kind, beside whole weights.

The same rows for all, in one run; without a GPU on the bundled model, every base once a round; with one on a random
model of LLaMA-7B's shape, base after base. A kind that does not run here is listed with the reason.

    python benchmarks/quantised.py [--rounds 5] [--threads 2] [--kinds float32,bnb-nf4,…]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import llm_adapters as la
from llm_adapters.errors import UserError
from llm_adapters.model.quantised_linears import weight_bytes
from llm_adapters.model.quantization import KINDS
from random_base import random_base

WHOLE = ("float32", "bfloat16")
BATCH, TOKENS, RANK = 4, 128, 16
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    # On CPUs bfloat16 products, and the float32 kernel of torchao-int4, may take minutes a step: on request only.
    usual = ["bfloat16", *KINDS] if CUDA else ["float32", *(kind for kind in KINDS if kind != "torchao-int4")]
    parser.add_argument("--kinds", default=",".join(usual))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = options.kinds.split(",")
    groups = [[kind] for kind in kinds] if CUDA else [kinds]
    where = torch.cuda.get_device_name() if CUDA else f"CPU, {options.threads} threads"
    print(f"LoRA of rank {RANK}, {BATCH} × {TOKENS} tokens, median of {options.rounds} rounds, {where}")
    first = None
    for group in groups:
        measured = measure(group, options.rounds)
        for kind, (seconds, size, peak, loss) in measured.items():
            first = first or (seconds, size)
            print(
                f"  {kind:13} {1000 * seconds:8.0f} ms a step ({seconds / first[0]:.2f} ×)   "
                f"weights {size / 2**20:8.0f} MiB ({size / first[1]:.2f} ×)   loss {loss:.3f}"
                + (f"   peak {peak / 2**30:.1f} GiB" if CUDA else "")
            )


def measure(kinds: Sequence[str], rounds: int) -> dict[str, tuple[float, int, int, float]]:
    """Median seconds of a step, bytes of the weights, peak bytes of the GPU, and the loss of the first step."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    bases: dict[str, Any] = {}
    for kind in kinds:
        try:
            bases[kind] = base(kind)
        except (UserError, RuntimeError) as failure:  # transformers' own reports of a missing kernel are RuntimeErrors
            print(f"  {kind:13} does not run here: {str(failure).splitlines()[0]}")
    sizes = {kind: weight_bytes(model) for kind, model in bases.items()}
    ids = rows(next(iter(bases.values())).config.vocab_size) if bases else None
    steps = {kind: step(model, ids) for kind, model in bases.items()}
    losses = {kind: run() for kind, run in steps.items()}  # the first step is not timed
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, run in steps.items():
            start = time.perf_counter()
            run()
            times[kind].append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if CUDA else 0
    return {kind: (statistics.median(times[kind]), sizes[kind], peak, losses[kind]) for kind in steps}


def base(kind: str) -> Any:
    """The bundled model, or a random one of 7B parameters, whole or quantised."""
    if not CUDA:
        return la.load_model(
            dtype=kind if kind in WHOLE else "float32", quantization="none" if kind in WHOLE else kind
        )[0]
    if kind in WHOLE:
        return random_base("llama-7b", kind)
    return random_base("llama-7b", "bfloat16", quantization=kind)


def rows(vocabulary: int) -> torch.Tensor:
    """The token ids that every base is given."""
    return torch.randint(vocabulary, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def step(model: Any, ids: torch.Tensor | None) -> Callable[[], float]:
    """One training step of a LoRA on all linear maps."""
    torch.manual_seed(0)
    adapter = la.attach(model, la.method("lora", rank=RANK), "a")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)
    model.train()

    def run() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the GPU

    return run


if __name__ == "__main__":
    main()
