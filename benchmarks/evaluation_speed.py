"""How fast are answers written? The reference's way, generate one by one, peft in padded batches, and this engine.

One model, one LoRA adapter with the same weights, the same rows, greedy, up to --tokens new tokens each, in one run:

    (a) batch 1, 4 beams, no cache           the reference's procedure (--slow-rows rows only; 0 leaves it out)
    (b) batch 1, greedy generate             transformers, adapter attached (--one-rows rows only)
    (c) peft + generate, padded batches of 16 (--padded-rows rows only)
    (d) this engine, adapter attached and unmerged
    (e) this engine, four adapters of four types on a quarter of the rows each

Prints new tokens a second, the ratios, how many texts of (c), (d) differ from (b), and the share of the floor set by
2·N operations a token – of prompts too – at the rate of the model's own matrix products. Machines are shared and change
their speed within seconds, so that rate is measured all along (d), every few steps with (d)'s clock stopped, by the
faster of torch's two ways: its mean is what (d) could have had. In (e) every row writes as many tokens as in (d).
(c), (d), (e) take turns --rounds times. A trained adapter writes texts of real lengths:
``llm-adapters train configs/math-short.yaml`` makes one for --adapter; without it a random one.

    python benchmarks/evaluation_speed.py [--benchmark gsm8k] [--adapter FOLDER] [--rows N] [--tokens N] [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model

import llm_adapters as la
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.generate import generate
from llm_adapters.generate.memory import MOST_ROWS
from llm_adapters.generate.stopping import stop_ids
from llm_adapters.model.prepacked import Prepacked

LINEARS = {
    "attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_o": "o_proj",
    "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj",
}  # fmt: skip
"""Our sites, as state names write them, and the linears of LLaMA."""
KINDS = ("lora", "series", "parallel", "prefix")


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    model, tokenizer = la.load_model()
    template = get_template(options.template)
    examples = load_source(options.benchmark, split="test", size=options.rows, seed=0)
    prompts = [template.prompt_ids(tokenizer, example) for example in examples]
    slow, one = prompts[: options.slow_rows], prompts[: options.one_rows]
    side = Sides(tokenizer, stop_ids(model, tokenizer), options.tokens)
    runs: dict[str, list[Run]] = {key: [] for key in "abcde"}
    rate = MatrixRate(model, min(len(prompts), MOST_ROWS))
    with tempfile.TemporaryDirectory() as place:
        lora = trained(model, options.adapter)
        lora.save(Path(place) / "lora")
        recipe, state = lora.methods[0].recipe(), {key: value.clone() for key, value in lora.state_dict().items()}
        if slow:
            runs["a"].append(timed(side.generate, model, slow, 1, num_beams=4, use_cache=False))
        runs["b"].append(timed(side.generate, model, one, 1))
        la.detach(model)
        for _ in range(options.rounds):  # ours and peft take turns
            la.attach(model, Path(place) / "lora", "lora")
            run = timed(side.engine, model, prompts, ["lora"], on_token=rate.every_few)
            runs["d"].append(run._replace(seconds=run.seconds - rate.taken()))
            for name in KINDS[1:]:
                la.attach(model, la.method(name), name)
            runs["e"].append(timed(side.engine, model, prompts, KINDS, [len(text) + 1 for text in runs["d"][0].texts]))
            la.detach(model)
            wrapped = with_peft(model, recipe, state)
            runs["c"].append(timed(side.generate, wrapped, prompts[: options.padded_rows], 16))
            model = wrapped.unload()
    head = model.lm_head.weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head  # its embeddings are its head
    report(options, prompts, runs, parameters=(body, head), rate=rate.mean())


class Run(NamedTuple):
    """What a side took, and wrote."""

    seconds: float
    texts: list[list[int]]


def rate_of(run: Run) -> float:
    """New tokens a second, the one that ends a text included."""
    return sum(len(text) + 1 for text in run.texts) / run.seconds


def timed(side: Callable[..., list[list[int]]], *what: Any, **how: Any) -> Run:
    start = time.perf_counter()
    texts = side(*what, **how)
    run = Run(time.perf_counter() - start, texts)
    written = sum(len(text) + 1 for text in texts)
    told = f"  {side.__name__} of {len(texts)} rows: {written} tokens in {run.seconds:.0f} s"
    print(told, file=sys.stderr, flush=True)  # a long benchmark that is cut off has told something
    return run


class Sides(NamedTuple):
    """The two ways to decode, with what they have in common."""

    tokenizer: Any
    stops: set[int]
    limit: int

    def generate(self, model: Any, prompts: Sequence[Sequence[int]], size: int, **how: Any) -> list[list[int]]:
        """transformers' ``generate``, in padded batches of ``size``."""
        pad, texts = self.tokenizer.pad_token_id, []
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=self.limit, do_sample=False, pad_token_id=pad,
                    **how,
                )  # fmt: skip
            texts += [cut(row[width:].tolist(), self.stops, pad) for row in out]
        return texts

    def engine(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        limits: list[int] | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """This engine, the adapters in turn over the rows; with ``limits`` every row writes just so many tokens."""
        done = generate(
            model, prompts, max_new_tokens=limits or self.limit, stop_ids=() if limits else self.stops,
            pad_id=self.tokenizer.pad_token_id, routes=[names[i % len(names)] for i in range(len(prompts))],
            on_token=on_token,
        )  # fmt: skip
        return [c.ids for c in sorted(done, key=lambda c: c.prompt)]


def trained(model: Any, folder: Path | None) -> Any:
    """The LoRA adapter in ``folder``, or a random one."""
    if folder:
        return la.attach(model, folder, "lora")
    adapter = la.attach(model, la.method("lora", rank=32, alpha=64), "lora")
    for key, parameter in adapter.named_parameters():
        if key.endswith(".B"):
            torch.nn.init.normal_(parameter, std=0.002)
    return adapter


def report(
    options: argparse.Namespace,
    prompts: Sequence[Sequence[int]],
    runs: dict[str, list[Run]],
    *,
    parameters: tuple[int, int],
    rate: float,
) -> None:
    seconds = {key: statistics.median(run.seconds for run in found) for key, found in runs.items() if found}
    texts = {key: found[0].texts for key, found in runs.items() if found}
    speed = {key: statistics.median(map(rate_of, runs[key])) for key in "abcd" if key in texts}
    print(
        f"{len(prompts)} rows of {options.benchmark}, at most {options.tokens} new tokens, {torch.get_num_threads()} "
        f"threads, {rate / 1e9:.0f} GFLOP/s, median of {options.rounds} rounds"
    )
    for key, tokens in speed.items():
        print(
            f"  ({key}) {tokens:7.1f} tokens/s   {len(texts[key]) / seconds[key]:6.2f} rows/s   {len(texts[key])} rows"
        )
    written = sum(len(text) + 1 for text in texts["d"])
    work = 2 * parameters[0] * (sum(map(len, prompts)) - len(prompts) + written) + 2 * parameters[1] * written
    ratio = statistics.median(rate_of(d) / rate_of(c) for c, d in zip(runs["c"], runs["d"], strict=True))
    mixed = statistics.median(e.seconds / d.seconds for e, d in zip(runs["e"], runs["d"], strict=True))
    slower = "   ".join(f"(d)/({key}) {speed['d'] / speed[key]:.1f}" for key in "ab" if key in speed)
    simply = 2 * sum(parameters) * (sum(map(len, prompts)) - len(prompts) + written)
    shares = [operations / rate / seconds["d"] for operations in (work, simply)]
    print(f"{slower}   (d)/(c) {ratio:.2f}")
    print(f"share of the floor {shares[0]:.2f}; {shares[1]:.2f} if prompts had needed the head too")
    print(f"(e) takes {mixed:.2f} times as long as (d)")
    for key in "cd":
        differ = sum(x != y for x, y in zip(texts[key], texts["b"], strict=False))
        print(f"texts of ({key}) that differ from (b): {differ} of {len(texts['b'])}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--benchmark", default="word-problems")
    parser.add_argument("--template", default="paper-eval")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--padded-rows", type=int, help="all, unless given")
    parser.add_argument("--one-rows", type=int, default=16)
    parser.add_argument("--slow-rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


def cut(ids: list[int], stops: set[int], pad: int) -> list[int]:
    """Up to the first stop or padding token."""
    ends = [i for i, token in enumerate(ids) if token in stops or token == pad]
    return ids[: ends[0]] if ends else ids


class MatrixRate:
    """Operations a second of the model's own products of so many rows, by the faster of torch's two ways."""

    EVERY = 16  # steps

    def __init__(self, model: Any, rows: int) -> None:
        self.linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self.inputs = {module.in_features: torch.randn(rows, module.in_features) for module in self.linears}
        self.operations = sum(2 * rows * module.weight.numel() for module in self.linears)
        self.packed = Prepacked(torch.nn.ModuleList(self.linears))
        self.samples: list[float] = []
        self.steps = 0
        self.clock = 0.0

    @torch.inference_mode()
    def sample(self) -> None:
        start = time.perf_counter()
        seconds = [self._seconds()]
        with self.packed():
            seconds.append(self._seconds())
        self.samples.append(self.operations / min(seconds))
        self.clock += time.perf_counter() - start

    def every_few(self, _tokens: int) -> None:
        """Take a sample in every so many calls."""
        self.steps += 1
        if self.steps % self.EVERY == 0:
            self.sample()

    def taken(self) -> float:
        """Seconds that samples have taken since this was asked last."""
        taken, self.clock = self.clock, 0.0
        return taken

    def mean(self) -> float:
        return statistics.fmean(self.samples)

    def _seconds(self) -> float:
        start = time.perf_counter()
        for module in self.linears:
            module.forward(self.inputs[module.in_features])  # without the hooks of adapters
        return time.perf_counter() - start


def with_peft(model: Any, recipe: dict[str, Any], state: dict[str, torch.Tensor]) -> Any:
    """The same adapter in peft."""
    places = {key.rpartition(".")[0].partition(".")[2] for key in state}  # "3.attn_q": layer and site
    targets = sorted({LINEARS[place.partition(".")[2]] for place in places})
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
            getattr(linears[layer, LINEARS[site]], f"lora_{letter}")["default"].weight.copy_(value)
    return wrapped


if __name__ == "__main__":
    main()
