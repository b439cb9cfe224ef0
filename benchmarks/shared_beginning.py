"""A step of decoding with the beginning that all rows share read once, against every row reading its own copy.

The bundled model with a random LoRA, generated word problems behind so many tokens in common, as worked examples are.
The two ways take turns, one step each.

    python benchmarks/shared_beginning.py [--rows 64] [--tokens 800] [--steps 10]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import llm_adapters as la
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.generate.batch import Batch, Row
from llm_adapters.model.row_blocks import Reading


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    model, tokenizer = la.load_model()
    la.attach(model, la.method("lora"), "lora")
    template = get_template("paper-eval")
    examples = load_source("word-problems", split="test", size=options.rows, seed=0)
    first = torch.randint(1000, 40_000, (options.tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        Row(i, [*first, *template.prompt_ids(tokenizer, example)], "lora", 2 * options.steps + 1, lambda _ids: False)
        for i, example in enumerate(examples)
    ]
    batch = Batch(
        model, rows, pad_id=tokenizer.pad_token_id, stop_ids=frozenset(), routed=True, batch_size=len(rows),
        sampling=None,
    )  # fmt: skip
    seconds: dict[str, list[float]] = {"each": [], "once": []}
    for _ in range(options.steps):
        for way, found in seconds.items():
            batch.take_in()
            assert batch.reading
            if way == "each":
                batch.reading = Reading(batch.reading.blocks)
            start = time.perf_counter()
            batch.step()
            found.append(time.perf_counter() - start)
    each, once = (1e3 * statistics.median(found) for found in seconds.values())
    print(f"{len(rows)} rows behind {options.tokens} tokens in common, {torch.get_num_threads()} threads")
    print(f"own copies {each:.0f} ms a step, once {once:.0f} ms: {each / once:.2f} times as fast")


if __name__ == "__main__":
    main()
