"""What does the layout of weights cost? A decoding step with PyTorch's own linears and with prepacked weights.

The bundled model, one new token for each of 1 to 256 rows, the two ways in turn; prints the median time of a step each
way, their ratio, and the largest difference of a logit.

    python benchmarks/prepacked.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch

import llm_adapters as la
from llm_adapters.model.prepacked import Prepacked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    model, _ = la.load_model()
    start = time.perf_counter()
    packed = Prepacked(model)
    print(f"{torch.get_num_threads()} threads; packed in {time.perf_counter() - start:.2f} s")
    print("rows   plain ms   packed ms   ratio   logits differ by")
    for rows in (1, 4, 16, 64, 128, 256):
        ids = torch.randint(0, model.config.vocab_size, (rows, 1))
        times: tuple[list[float], list[float]] = ([], [])
        logits = []
        with torch.inference_mode():
            for _ in range(rounds):
                for way, taken in zip((nullcontext, packed), times, strict=True):
                    start = time.perf_counter()
                    with way():
                        logits.append(model(ids).logits)
                    taken.append(time.perf_counter() - start)
        plain, fast = (1000 * statistics.median(taken) for taken in times)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        differ = float((logits[-1] - logits[-2]).abs().max())
        print(f"{rows:4}   {plain:8.1f}   {fast:9.1f}   {ratio:5.2f}   {differ:.1e}")


if __name__ == "__main__":
    main()
