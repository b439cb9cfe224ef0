"""What does the layout of weights cost? A pass with PyTorch's own linears and with prepacked weights.

The bundled model: one new token for each of 1 to 256 rows, and a forward and a backward pass over a row of 190 or 760
tokens, the two ways in turn. Prints the median time each way, their ratio, and the largest difference of a logit or a
gradient, as a share of the largest. Copies are made whether or not the library would make them on this CPU.

    python benchmarks/prepacked.py [--rounds 9] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import llm_adapters as la
from llm_adapters.model import prepacked
from llm_adapters.model.prepacked import Prepacked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    prepacked._pays = lambda *_, **__: True
    model, _ = la.load_model(dtype=options.dtype)
    model.requires_grad_(False)
    start = time.perf_counter()
    packed, both_ways = Prepacked(model), Prepacked(model, training=True)
    print(f"{torch.get_num_threads()} threads; packed three times in {time.perf_counter() - start:.2f} s")
    print("                plain ms   packed ms   ratio   differ by")
    for rows in (1, 4, 16, 64, 128, 256):
        ids = torch.randint(0, model.config.vocab_size, (rows, 1))
        with torch.inference_mode():
            compare(f"{rows} rows", packed, lambda ids=ids: model(ids).logits, options.rounds)
    for tokens in (190, 760):
        embedded = model.get_input_embeddings()(torch.randint(0, model.config.vocab_size, (1, tokens))).requires_grad_()

        def gradient(embedded: Any = embedded) -> Tensor:
            states = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            return torch.autograd.grad(states.float().square().sum(), embedded)[0]

        compare(f"{tokens} trained", both_ways, gradient, options.rounds)


def compare(what: str, packed: Prepacked, function: Callable[[], Tensor], rounds: int) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    found = []
    for _ in range(rounds):
        for way, taken in zip((nullcontext, packed), times, strict=True):
            start = time.perf_counter()
            with way():
                found.append(function())
            taken.append(time.perf_counter() - start)
    plain, fast = (1000 * statistics.median(taken) for taken in times)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    differ = float((found[-1] - found[-2]).abs().max() / found[-2].abs().max())
    print(f"{what:12}   {plain:9.1f}   {fast:9.1f}   {ratio:5.2f}   {differ:.1e}")


if __name__ == "__main__":
    main()
