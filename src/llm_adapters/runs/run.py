"""One run: evaluate the base, train, evaluate again; everything lands in one folder, and a kill loses little."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach, detach
from llm_adapters.adapters.method import methods, parse_method
from llm_adapters.config.files import override, read_yaml
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.encoding import Encoded, Template
from llm_adapters.data.example import Example
from llm_adapters.data.templates import get_template
from llm_adapters.errors import Stopped
from llm_adapters.evaluation.forgetting import measure_forgetting
from llm_adapters.evaluation.leaks import Leaks
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.evaluation.runner import accuracy, evaluate
from llm_adapters.evaluation.score import Score, means, write_summary
from llm_adapters.evaluation.suite import Suite
from llm_adapters.model import load_model
from llm_adapters.model.quantised_linears import parameter_count
from llm_adapters.runs.begun import open_run
from llm_adapters.runs.folder import write_whole
from llm_adapters.runs.manifest import forget_peak_memory
from llm_adapters.runs.names import MANIFEST, TRAINING
from llm_adapters.runs.run_plan import RunPlan
from llm_adapters.runs.shared_base import take_over
from llm_adapters.runs.training_data import TrainingData
from llm_adapters.train import FAILED, Metrics, RecentRate, Stop, Team, TrainResult, has_label, total_steps, train
from llm_adapters.train.sharding import is_sharded, placement

ADAPTER = "tuned"
"""Name of the trained adapter on the run's model, and of its rows in the predictions."""


class Observer(Protocol):
    """Whoever watches a run: told what begins, how far it is, what came out, and what is worth knowing besides."""

    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int, note: str = "") -> None: ...
    def end(self, result: str) -> None: ...
    def note(self, text: str) -> None: ...


def read_config(path: Path | None, assignments: Sequence[str] = ()) -> RunConfig:
    """A run's configuration from a file and overrides, with every mistake reported at once."""
    data = override({} if path is None else read_yaml(path), assignments)
    return RunConfig.parse(
        data, where=str(path or "configuration"), context={"parse_method": parse_method, "methods": list(methods())}
    )


def execute(
    config: RunConfig,
    folder: Path,
    observer: Observer,
    *,
    force: bool = False,
    score: bool = True,
    stop: Stop | None = None,
    base: Path | None = None,
) -> Path:
    """Carry out a run, or go on with it where the same run was interrupted in ``folder``.

    Args:
        config: what to do.
        folder: where everything is written; the manifest comes last and marks the run as complete.
        observer: told of the progress.
        force: start again, replacing an earlier run in ``folder``.
        score: evaluate before and after; otherwise train only.
        stop: asked after every training step whether to stop.
        base: where runs that ask the base the same share what it answers; without it, this run asks it itself.

    Raises:
        UserError: anything that the user can mend, as far as possible before weights are loaded.
        Stopped: ``stop`` was asked; the same call goes on.
    """
    started = time.perf_counter()
    forget_peak_memory()
    plan = RunPlan.of(config, score=score)
    data, suites = plan.data, plan.suites
    with open_run(folder, plan.record, plan.digests, observer.note, force=force):
        (folder / FAILED).unlink(missing_ok=True)  # of a cohort that it was a member of: now it goes on alone
        run = ActiveRun.prepare(config, plan.template, folder, observer)
        encoded, judges = run.encode(data.examples, "training"), run.encode(data.validation, "validation")
        # What the best was chosen on counts as trained on.
        leaks = Leaks({ADAPTER: [*data.examples, *data.validation]}, suites)
        shared = run.share_base(suites, base) if base is not None else 0.0
        scores = run.score(suites, None, leaks)
        result, before = run.trained(encoded, judges, data, plan.rate, stop, by_accuracy=plan.by_accuracy)
        if suites:
            scores += run.score(suites, ADAPTER, leaks)
            averages = means([read_rows(folder / "eval" / suite.file) for suite in suites])
            write_summary(scores, averages, folder / "eval" / "summary.json")
        manifest = plan.manifest(
            run.adapter, result, encoded, base_parameters=run.base_parameters,
            forgetting=forgetting(config, run.model, run.tokenizer, ADAPTER, observer) if score else None,
            seconds=before + time.perf_counter() - started - shared,
        )  # fmt: skip
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return folder


@dataclass(frozen=True)
class ActiveRun:
    """A run under way."""

    config: RunConfig
    template: Template
    folder: Path
    observer: Observer
    model: Any
    tokenizer: Any
    adapter: Adapter
    base_parameters: int

    @classmethod
    def prepare(cls, config: RunConfig, template: Template, folder: Path, observer: Observer) -> ActiveRun:
        source = config.model
        observer.begin(f"loading {source.source}", None)
        model, tokenizer = load_model(
            source.source, quantization=source.quantization, trust_remote_code=source.trust_remote_code,
            **placement(config.train, source.dtype),
        )  # fmt: skip
        total = parameter_count(model)
        torch.manual_seed(config.seed)
        adapter = attach(model, list(config.adapter), ADAPTER, tokenizer=tokenizer)
        observer.end(f"{total:,} frozen parameters, {adapter.count():,} trained ({adapter.count() / total:.2%})")
        return cls(config, template, folder, observer, model, tokenizer, adapter, total)

    def encode(self, examples: Sequence[Example], what: str) -> list[Encoded]:
        return encode(self.config, self.tokenizer, examples, what, self.observer)

    def share_base(self, suites: Sequence[Suite], shared: Path) -> float:
        """Take the base's predictions over from what is shared, or make them for all; gives the seconds it took."""
        started = time.perf_counter()
        if suites:
            rows = sum(len(suite.examples) for suite in suites)
            self.observer.begin("what the base answers, for all runs", rows)
            take_over(
                shared, self.folder / "eval", self.config, suites,
                lambda folder: evaluate(
                    self.model, self.tokenizer, suites, [None], settings=self.config.evaluate, folder=folder,
                    on_row=self.observer.advance,
                ),
            )  # fmt: skip
            self.observer.end(f"{rows} rows")
        return time.perf_counter() - started

    def score(self, suites: Sequence[Suite], adapter: str | None, leaks: Leaks) -> list[Score]:
        """Evaluate the base or the adapter on every set."""
        if not suites:
            return []
        who, rows = "the base" if adapter is None else "the tuned model", sum(len(suite.examples) for suite in suites)
        sets = ", ".join(dict.fromkeys(suite.task.name for suite in suites))
        self.observer.begin(f"evaluating {who} on {rows} rows of {sets}", rows)
        scores = evaluate(
            self.model, self.tokenizer, suites, [adapter], settings=self.config.evaluate, folder=self.folder / "eval",
            leaked=leaks, on_row=self.observer.advance,
        )  # fmt: skip
        self.observer.end(in_words(scores))
        return scores

    def trained(
        self, encoded: Sequence[Encoded], judges: Sequence[Encoded], data: TrainingData, rate: float,
        stop: Stop | None, *, by_accuracy: Suite | None,
    ) -> tuple[TrainResult, float]:  # fmt: skip
        """Train and save the adapter, unless that is done; then attach what was saved, to be evaluated.

        Returns:
            The result, and the seconds of training that earlier sessions took.
        """
        record, saved, here = self.folder / TRAINING, self.folder / "adapter", 0.0
        if record.exists():
            result = TrainResult(**json.loads(record.read_text(encoding="utf-8")))
        else:
            started = time.perf_counter()
            result = self.train_adapter(encoded, judges, data, rate, stop, by_accuracy=by_accuracy)
            here = time.perf_counter() - started
            self.adapter.save(saved, overwrite=True)
            write_whole(record, json.dumps(asdict(result)) + "\n")
            if stop is not None and stop.asked:  # after the last look of the loop
                raise Stopped("stopped after training")
        if not is_sharded(self.config.train, Team.join()):  # then nothing is evaluated
            detach(self.model, ADAPTER)
            attach(self.model, saved, ADAPTER)
        return result, max(0.0, result.seconds - here)

    def train_adapter(
        self, encoded: Sequence[Encoded], judges: Sequence[Encoded], data: TrainingData, rate: float,
        stop: Stop | None, *, by_accuracy: Suite | None,
    ) -> TrainResult:  # fmt: skip
        steps = total_steps(sum(map(has_label, encoded)), self.config.train)
        self.observer.begin(f"training at learning rate {rate:g}", steps)
        done, rate_now = 0, RecentRate()

        def on_step(row: Metrics) -> None:
            nonlocal done
            self.observer.advance(
                int(row["step"]) - done, f"loss {row['loss']:.3f}, {rate_now.after(row):.0f} tokens/s"
            )
            done = int(row["step"])

        def answered() -> float:
            assert by_accuracy is not None
            return accuracy(self.model, self.tokenizer, by_accuracy, ADAPTER, settings=self.config.evaluate)

        result = train(
            self.model, self.adapter, encoded, self.config.train, learning_rate=rate,
            pad_id=self.tokenizer.pad_token_id, seed=self.config.seed, folder=self.folder, validation=judges,
            accuracy=answered if by_accuracy else None, rows=data.rows, validation_rows=data.validation_rows,
            stop=stop, on_step=on_step, on_note=self.observer.note,
        )  # fmt: skip
        self.observer.end(result_in_words(result))
        return result


def encode(
    config: RunConfig, tokenizer: Any, examples: Sequence[Example], what: str, observer: Observer
) -> list[Encoded]:
    """Examples as a run trains on them, with a word on what was cut."""
    if not examples:
        return []
    observer.begin(f"encoding {len(examples)} {what} examples", None)
    data, template = config.data, get_template(config.data.template)
    encoded = [
        template.encode(tokenizer, example, max_length=data.max_length, train_on=data.train_on) for example in examples
    ]
    cut = sum(example.truncated for example in encoded)
    tokens = sum(len(example.input_ids) for example in encoded)
    observer.end(f"{tokens:,} tokens" + (f"; {cut} examples cut at {data.max_length} tokens" if cut else ""))
    return encoded


def in_words(scores: Sequence[Score]) -> str:
    """Accuracies in one line."""
    return "; ".join(
        (f"{each.benchmark}, {each.protocol}: " if len(scores) > 1 else "")
        + f"{each.accuracy:.1%} correct (95 % interval {each.low:.1%} to {each.high:.1%}), {each.unparsed} unparsed"
        for each in scores
    )


def result_in_words(result: TrainResult) -> str:
    """What came of a training in one line."""
    right = result.best_accuracy
    said = f"{result.best_loss or 0:.3f}" + (f", {right:.1%} correct," if right is not None else "")
    best = f"; best validation {said} after step {result.best_step}" if result.best_step else ""
    return f"{result.steps} steps, loss {result.first_loss:.3f} → {result.last_loss:.3f}{best}"


def forgetting(
    config: RunConfig, model: Any, tokenizer: Any, adapter: str, observer: Observer
) -> dict[str, Any] | None:
    """What the base has forgotten under an adapter, measured on plain text; None if that is not asked."""
    if (source := config.evaluate.forgetting) is None:
        return None
    observer.begin(f"reading plain text ({source})", None)
    found = measure_forgetting(model, tokenizer, source, adapter)
    observer.end(
        f"cross-entropy {found.before:.3f} → {found.after:.3f} nats a token "
        f"({found.difference:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f})"
    )
    return asdict(found)
