"""How fast are answers written? The reference's way, generate one by one, peft in padded batches, and this engine.

One model, one LoRA adapter with the same weights, the same rows, greedy, up to --tokens new tokens each, in one run:

    (a) batch 1, 4 beams, no cache           the reference's procedure (--slow-rows rows only)
    (b) batch 1, greedy generate             transformers, adapter attached (--one-rows rows only)
    (c) peft + generate, padded batches of 16
    (d) this engine, adapter attached and unmerged
    (e) this engine, four adapters of four types on a quarter of the rows each

Prints new tokens a second, the ratios, how many texts of (c), (d) differ from (b), and the share of the floor set by
2·N operations a token – of prompts too – at the matrix rate measured in the same run. A trained adapter writes texts
of real lengths: ``llm-adapters train configs/math-short.yaml`` makes one for --adapter; without it a random one.

    python benchmarks/evaluation_speed.py [--benchmark gsm8k] [--adapter FOLDER] [--rows 128] [--tokens 128]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import llm_adapters as la
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.generate import generate
from llm_adapters.generate.stopping import stop_ids

NAMES = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_o": "o_proj",
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj",
}  # fmt: skip
"""Our sites, as state names write them, and the linears of LLaMA."""


def main() -> None:
    options = arguments()
    torch.manual_seed(0)

    model, tokenizer = la.load_model()
    examples = load_source(options.benchmark, split="test", size=options.rows, seed=0)
    template = get_template(options.template)
    prompts = [template.prompt_ids(tokenizer, example) for example in examples]
    stops, limit = stop_ids(model, tokenizer), options.tokens
    if options.adapter:
        adapter = la.attach(model, options.adapter, "lora")
    else:
        adapter = la.attach(model, la.method("lora", rank=32, alpha=64), "lora")
        for key, parameter in adapter.named_parameters():
            if key.endswith(".B"):
                torch.nn.init.normal_(parameter, std=0.002)

    def hf(candidate: Any, batch: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + list(row) for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            out = candidate.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False,
                pad_token_id=tokenizer.pad_token_id, **how,
            )  # fmt: skip
        return [cut(row[width:].tolist(), stops, tokenizer.pad_token_id) for row in out]

    def engine(routes: list[str]) -> list[list[int]]:
        done = generate(
            model, prompts, max_new_tokens=limit, stop_ids=stops, pad_id=tokenizer.pad_token_id,
            routes=routes,
        )  # fmt: skip
        return [c.ids for c in sorted(done, key=lambda c: c.prompt)]

    parameters = sum(p.numel() for p in model.parameters())
    results: dict[str, tuple[float, list[list[int]]]] = {}
    slow, one = prompts[: options.slow_rows], prompts[: options.one_rows]
    results["a"] = timed(lambda: [hf(model, [p], num_beams=4, use_cache=False)[0] for p in slow])
    results["b"] = timed(lambda: [hf(model, [p])[0] for p in one])
    rate = matrix_rate(len(prompts))
    results["d"] = timed(lambda: engine(["lora"] * len(prompts)))
    for name in ("series", "parallel", "prefix"):
        la.attach(model, la.method(name), name)
    names = ["lora", "series", "parallel", "prefix"]
    results["e"] = timed(lambda: engine([names[i % 4] for i in range(len(prompts))]))
    rate = max(rate, matrix_rate(len(prompts)))
    recipe, state = adapter.methods[0].recipe(), {key: value.clone() for key, value in adapter.state_dict().items()}
    la.detach(model)
    peft_model = with_peft(model, recipe, state)
    results["c"] = timed(lambda: [t for i in range(0, len(prompts), 16) for t in hf(peft_model, prompts[i : i + 16])])

    print(f"{len(prompts)} rows of {options.benchmark}, {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s")
    speed = {key: sum(len(t) + 1 for t in texts) / seconds for key, (seconds, texts) in results.items()}
    for key in "abcde":
        seconds, texts = results[key]
        print(f"  ({key}) {speed[key]:7.1f} tokens/s   {len(texts) / seconds:6.2f} rows/s")
    seconds, texts = results["d"]
    work = 2 * parameters * (sum(map(len, prompts)) + sum(map(len, texts)))
    print(
        f"(d)/(a) {speed['d'] / speed['a']:.0f}   (d)/(b) {speed['d'] / speed['b']:.1f}   "
        f"(d)/(c) {speed['d'] / speed['c']:.2f}   share of the floor {work / rate / seconds:.2f}"
    )
    print(f"(e)/(d), time a token: {speed['d'] / speed['e']:.2f}")
    for key in "cd":
        differ = sum(x != y for x, y in zip(results[key][1], results["b"][1], strict=False))
        print(f"texts of ({key}) that differ from (b): {differ} of {len(one)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--benchmark", default="word-problems")
    parser.add_argument("--template", default="paper-eval")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--one-rows", type=int, default=16)
    parser.add_argument("--slow-rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


def cut(ids: list[int], stops: set[int], pad: int) -> list[int]:
    """Up to the first stop or padding token."""
    ends = [i for i, token in enumerate(ids) if token in stops or token == pad]
    return ids[: ends[0]] if ends else ids


def timed(run: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    start = time.perf_counter()
    texts = run()
    return time.perf_counter() - start, texts


def matrix_rate(rows: int) -> float:
    """Operations a second of the model's own largest product at the engine's batch size, best of several."""
    a, b = torch.randn(rows, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        best = max(best, 20 * 2 * a.shape[0] * b.numel() / (time.perf_counter() - start))
    return best


def with_peft(model: Any, recipe: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    """The same adapter in peft."""
    places = {key.rpartition(".")[0].partition(".")[2] for key in state}  # "3.attn_q": layer and site
    targets = sorted({NAMES[place.partition(".")[2]] for place in places})
    config = LoraConfig(r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).eval()
    linears = {
        (name.split(".layers.")[1].split(".")[0], name.rpartition(".")[2]): module
        for name, module in wrapped.named_modules()
        if ".layers." in name and name.endswith("_proj")
    }
    with torch.no_grad():
        for key, value in state.items():
            _, layer, site, letter = key.split(".")
            getattr(linears[layer, NAMES[site]], f"lora_{letter}")["default"].weight.copy_(value)
    return wrapped


if __name__ == "__main__":
    main()
