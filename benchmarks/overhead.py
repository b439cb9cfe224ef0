"""What does an attached adapter cost a training step, against the bare base and against peft's LoRA?

Forward and backward of one micro-batch, in turn, on one randomly initialised LLaMA-shaped model:

    base    the frozen base, backward to its input embeddings (the floor: no adapter can do without it)
    ours    each method attached
    peft    peft's LoRA with the same rank at the same linears

Prints the median time of each and its ratios. Also times attaching LoRA to a 7B-shaped model on the meta device.

    python benchmarks/overhead.py [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

import llm_adapters as la

RANK, BATCH, TOKENS = 16, 8, 128
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OURS = {
    "lora": {"rank": RANK, "alpha": 2 * RANK},
    "series": {},
    "parallel": {},
    "scaled_parallel": {},
    "prefix": {},
    "prompt": {},
}


def llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=4096, num_key_value_heads=sizes["num_attention_heads"] // 3, **sizes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    config = llama(hidden_size=576, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=9)
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False).train()
    ids = torch.randint(config.vocab_size, (BATCH, TOKENS))
    steps = {"base": floor(base, ids)}
    for name, fields in OURS.items():
        model = copy.deepcopy(base)
        la.attach(model, la.method(name, **fields), "a")
        steps[name] = step(model, ids)
    peft_model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS, task_type="CAUSAL_LM")
    )
    steps["peft lora"] = step(peft_model, ids)

    times = interleaved(steps, options.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"forward + backward, {BATCH} × {TOKENS} tokens, median of {options.rounds} rounds, {options.threads} threads"
    )
    for name, median in medians.items():
        print(f"  {name:16} {1000 * median:8.1f} ms   {median / medians['base']:.3f} × base")
    ratios = [ours / peft for ours, peft in zip(times["lora"], times["peft lora"], strict=True)]
    print(f"lora, ours / peft: {statistics.median(ratios):.3f} (median of paired rounds)")
    print(f"attach lora to a 7B-shaped model on meta: {attach_on_meta():.3f} s")


def floor(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    """The frozen base with a gradient down to its inputs."""

    def run() -> None:
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()

    return run


def step(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for parameter in trained:
            parameter.grad = None

    return run


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Every candidate once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def attach_on_meta() -> float:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    start = time.perf_counter()
    la.attach(model, la.method("lora", rank=32), "a")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
