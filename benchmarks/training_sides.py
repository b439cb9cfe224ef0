"""The sides of ``training_speed.py``: this engine, and its peers under their trainers, each on the batches of one plan.

A peer's interpreter may lack this project, so what it needs is imported where it is used.
"""

from __future__ import annotations

import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from random_base import DEVICE, random_base

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, RATE, BOTTLENECK = 32, 64, 3e-4, 256
BATCH = 16


def work(side: str, plan: dict[str, Any]) -> dict[str, Any]:
    """One side. The first step is not timed, nor on a GPU the first few."""
    torch.manual_seed(0)
    gc.collect()  # what the side before has left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # and this base does not lie in the holes of it
    quantised = plan["quantization"] if side in ("quantised", "qlora") else None
    model = loaded(plan, quantised)
    with torch.device("meta"):  # quantised weights are packed
        parameters = sum(p.numel() for p in type(model)(model.config).parameters())
    watch = Watch(partial(matrix_rate, model.config, plan["dtype"]), plan["warm"])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if side in ("trainer", "qlora", "liger"):
        losses = trainer(model, plan, watch, liger=side == "liger", quantised=quantised is not None)
    else:
        dropout = 0.0 if side == "undropped" else plan["dropout"]
        losses = ours(model, {**plan, "dropout": dropout}, watch, compiled=side == "compiled")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {"losses": losses, "peak": peak, "parameters": parameters, **watch.measured()}


class Watch:
    """Times steps but the first few, and before and after each of those the rate of products, which swings.

    On a GPU, whose rate is steady and whose clock idling would change, before the first and after the last alone.
    """

    def __init__(self, rate: Callable[[], float], warm: int) -> None:
        self._rate, self._left = rate, warm
        self._seconds: list[float] = []
        self._rates: list[float] = []
        self._start = 0.0

    def begin(self) -> None:
        """What lies between two steps belongs to the second; not so the measuring of the rate."""
        if self._left or (self._rates and torch.cuda.is_available()):
            return
        before = self._now()
        self._rates.append(self._rate())
        self._start = self._start + self._now() - before if self._seconds else self._now()

    def end(self) -> None:
        if self._left:
            self._left -= 1
            return
        now = self._now()
        self._seconds.append(now - self._start)
        self._start = now

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def measured(self) -> dict[str, Any]:
        """The seconds of each timed step and of all, and the operations that products would have done in them."""
        self._rates.append(self._rate())
        if torch.cuda.is_available():
            mean = statistics.mean(self._rates)
            return {"steps": self._seconds, "seconds": sum(self._seconds), "possible": sum(self._seconds) * mean}
        pairs = zip(self._seconds, pairwise(self._rates), strict=True)
        possible = sum(s * (a + b) / 2 for s, (a, b) in pairs)
        return {"steps": self._seconds, "seconds": sum(self._seconds), "possible": possible}


def loaded(plan: dict[str, Any], quantization: str | None) -> Any:
    """The base, by what every side has: an interpreter with ``adapters`` has an older transformers, and not this."""
    from transformers import AutoModelForCausalLM

    if plan["shape"]:
        return random_base(plan["shape"], plan["dtype"], pad_id=plan["pad"], quantization=quantization)
    if quantization:
        import llm_adapters as la

        return la.load_model(plan["base"], dtype=plan["dtype"], quantization=quantization)[0]
    return AutoModelForCausalLM.from_pretrained(plan["base"], dtype=getattr(torch, plan["dtype"])).to(DEVICE)


def ours(model: Any, plan: dict[str, Any], watch: Watch, *, compiled: bool) -> list[float]:
    import llm_adapters as la
    from llm_adapters.config.schema import TrainSection
    from llm_adapters.data.encoding import Encoded
    from llm_adapters.train.numbered import Numbered
    from llm_adapters.train.stepper import Stepper
    from llm_adapters.train.team import Team

    sizes = {
        "lora": {"rank": RANK, "alpha": ALPHA, "dropout": plan["dropout"]},
        "series": {"bottleneck": BOTTLENECK},
        "parallel": {"bottleneck": BOTTLENECK},
    }
    adapter = la.attach(model, la.method(plan["method"], **sizes.get(plan["method"], {})), "a")
    if plan["method"] == "lora":
        same_start(adapter.named_parameters(), "A", "B")
    settings = TrainSection(batch_size=BATCH, warmup=0, schedule="constant", compile=compiled)
    stepper = Stepper(
        model, adapter, settings, learning_rate=RATE, steps=len(plan["batches"]), pad_id=plan["pad"],
        note=print, team=Team(),
    )  # fmt: skip
    stepper.open()
    stepper.share_beginnings()
    model.train()
    losses = []
    for batch in plan["batches"]:
        watch.begin()
        rows = [Numbered(i, Encoded(row["input_ids"], row["labels"], truncated=False)) for i, row in enumerate(batch)]
        losses.append(stepper.step(rows, plan["micro_batch"])[0])
        watch.end()
    if plan["profile"]:
        print(f"the GPU is busy for {busy(lambda: stepper.step(rows, plan['micro_batch'])):.0f} ms of a step")
    stepper.close()
    return losses


def busy(step: Callable[[], Any]) -> float:
    """Milliseconds of a GPU's kernels in a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in found.key_averages()) / 1000


def trainer(model: Any, plan: dict[str, Any], watch: Watch, *, liger: bool, quantised: bool) -> list[float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    base: Any = Trainer
    if plan["method"] == "lora":
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        if quantised:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = get_peft_model(
            model,
            LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=plan["dropout"], target_modules=LINEARS, task_type="CAUSAL_LM"
            ),
        )
        same_start(model.named_parameters(), "lora_A.default.weight", "lora_B.default.weight")
    else:
        import adapters

        adapters.init(model)
        config = {"series": adapters.SeqBnConfig, "parallel": adapters.ParBnConfig}[plan["method"]]
        model.add_adapter("a", config=config(reduction_factor=model.config.hidden_size / BOTTLENECK))
        model.train_adapter("a")
        base = adapters.AdapterTrainer
    losses: list[float] = []

    class Watched(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    class InOrder(base):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=plan["peer_micro_batch"],
            gradient_accumulation_steps=BATCH // plan["peer_micro_batch"], max_steps=len(plan["batches"]),
            learning_rate=RATE, weight_decay=0.0, max_grad_norm=1.0, lr_scheduler_type="constant", logging_steps=1,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            bf16=plan["dtype"] == "bfloat16", **({"use_liger_kernel": True} if liger else {}),
        )  # fmt: skip
        rows = [row for batch in plan["batches"] for row in batch]
        InOrder(
            model=model, args=settings, train_dataset=rows, callbacks=[Watched()],
            data_collator=lambda batch: padded(batch, plan["pad"]),
        ).train()  # fmt: skip
    return losses


def padded(batch: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """What the usual collator makes of a batch; the tokenizer of one transformers cannot be read by another."""
    width = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": column("input_ids", pad),
        "labels": column("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def same_start(parameters: Any, first: str, second: str) -> None:
    """The same LoRA weights on every side, whatever its names: A from a seed of its shape, B zero as it is."""
    for name, parameter in parameters:
        if name.endswith(first):
            generator = torch.Generator().manual_seed(parameter.shape[1])
            with torch.no_grad():
                parameter.copy_(torch.empty_like(parameter, device="cpu").normal_(0, 0.02, generator=generator))
        elif name.endswith(second):
            assert not parameter.any()


def matrix_rate(config: Any, dtype: str) -> float:
    """Operations a second of the model's largest product, median of several: what slows the training slows it too."""
    device, kind = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype)
    rows, width, inner = 8192 if device == "cuda" else 1024, config.hidden_size, config.intermediate_size
    a, b = torch.randn(rows, width, device=device, dtype=kind), torch.randn(width, inner, device=device, dtype=kind)
    rates = []
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(10 * 2 * a.shape[0] * b.numel() / (time.perf_counter() - start))
    return statistics.median(rates)
