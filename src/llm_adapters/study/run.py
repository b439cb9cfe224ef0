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
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.fingerprint import fingerprint
from llm_adapters.adapters.method import methods, parse_method
from llm_adapters.config.files import override, read_yaml
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.encoding import Encoded, Template
from llm_adapters.data.example import Example
from llm_adapters.data.templates import get_template
from llm_adapters.errors import Stopped
from llm_adapters.evaluation.leaks import Leaks
from llm_adapters.evaluation.runner import accuracy, evaluate
from llm_adapters.evaluation.score import Score, write_summary
from llm_adapters.evaluation.suite import Suite
from llm_adapters.model import empty_model, find_sites, load_model
from llm_adapters.study.begun import open_run
from llm_adapters.study.folder import MANIFEST, write_whole
from llm_adapters.study.manifest import data_digest, environment, peak_memory_bytes
from llm_adapters.study.training_data import TrainingData
from llm_adapters.train import Metrics, RecentRate, Stop, TrainResult, check_trackers, total_steps, train

ADAPTER = "tuned"
"""Name of the trained adapter on the run's model, and of its rows in the predictions."""
TRAINING = "training.json"
"""What training took and gave; written when ``adapter`` holds its result."""


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
) -> Path:
    """Carry out a run, or go on with it where the same run was interrupted in ``folder``.

    Args:
        config: what to do.
        folder: where everything is written; the manifest comes last and marks the run as complete.
        observer: told of the progress.
        force: start again, replacing an earlier run in ``folder``.
        score: evaluate before and after; otherwise train only.
        stop: asked after every training step whether to stop.

    Raises:
        UserError: anything that the user can mend, as far as possible before weights are loaded.
        Stopped: ``stop`` was asked; the same call goes on.
    """
    started = time.perf_counter()
    template = get_template(config.data.template)
    data = TrainingData.of(config.data, config.seed)
    asked = config.evaluate
    protocols = ("standard", "paper") if asked.protocol == "both" else (asked.protocol,)
    suites = [
        Suite.of(asked.data, asked.size, config.seed, config.data.template, protocol)
        for protocol in (protocols if score else ())
    ]
    by_accuracy = validation_suite(config, data.validation)
    rate = learning_rate(config)
    check_methods(config)
    check_trackers(config.train.trackers)
    record = config.model_dump(mode="json")
    digests = {
        "training": data_digest(data.examples),
        "validation": data_digest(data.validation),
        "test": data_digest(suites[0].examples) if suites else None,
    }
    with open_run(folder, record, digests, observer.note, force=force):
        run = _Run.prepare(config, template, folder, observer)
        encoded, judges = run.encode(data.examples, "training"), run.encode(data.validation, "validation")
        # What the best was chosen on counts as trained on.
        leaks = Leaks({ADAPTER: [*data.examples, *data.validation]}, suites)
        scores = run.score(suites, None, leaks)
        result, before = run.trained(encoded, judges, data.rows, rate, stop, by_accuracy=by_accuracy)
        if suites:
            scores += run.score(suites, ADAPTER, leaks)
            write_summary(scores, [], folder / "eval" / "summary.json")
        manifest = {
            "config": record,
            "learning_rate": rate,
            "training": asdict(result),
            "parameters": {"trained": run.adapter.count(), "base": run.base_parameters},
            "base": fingerprint(run.adapter.base),
            "data": {
                "train": digests["training"],
                "validation": digests["validation"],
                "encoded": data_digest(encoded),
                "test": data_digest(suites[0].examples if suites else []),
            },
            "seconds": round(before + time.perf_counter() - started, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(),
        }
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return folder


def check_methods(config: RunConfig) -> None:
    """Refuse methods that do not fit the model, from its configuration alone: before weights are loaded.

    Raises:
        SiteError, MethodError, ModelError: as attaching would.
    """
    model = empty_model(config.model.source, trust_remote_code=config.model.trust_remote_code)
    base = Base(model, find_sites(model))
    for method in config.adapter:
        method.count(base)


def validation_suite(config: RunConfig, examples: Sequence[Example]) -> Suite | None:
    """The validation rows as a set to be answered, where the best is chosen by accuracy.

    Raises:
        DataError: a row has no gold answer.
    """
    if config.train.best_by == "loss":
        return None
    asked = config.data.validation
    return Suite.of_rows(asked if isinstance(asked, str) else config.data.train, examples, config.data.template)


def learning_rate(config: RunConfig) -> float:
    """The recipe's learning rate for these methods; where it names none, the methods' own.

    A composed adapter is trained at one rate: the smallest of its methods'.
    """
    given = config.train.learning_rate
    if isinstance(given, float):
        return given
    rates = given or {}
    return min(rates.get(method.name(), type(method).learning_rate) for method in config.adapter)


@dataclass(frozen=True)
class _Run:
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
    def prepare(cls, config: RunConfig, template: Template, folder: Path, observer: Observer) -> _Run:
        source = config.model
        observer.begin(f"loading {source.source}", None)
        model, tokenizer = load_model(source.source, dtype=source.dtype, trust_remote_code=source.trust_remote_code)
        total = sum(parameter.numel() for parameter in model.parameters())
        torch.manual_seed(config.seed)
        adapter = attach(model, list(config.adapter), ADAPTER, tokenizer=tokenizer)
        observer.end(f"{total:,} frozen parameters, {adapter.count():,} trained ({adapter.count() / total:.2%})")
        return cls(config, template, folder, observer, model, tokenizer, adapter, total)

    def encode(self, examples: Sequence[Example], what: str) -> list[Encoded]:
        if not examples:
            return []
        self.observer.begin(f"encoding {len(examples)} {what} examples", None)
        data = self.config.data
        encoded = [
            self.template.encode(self.tokenizer, example, max_length=data.max_length, train_on=data.train_on)
            for example in examples
        ]
        cut = sum(example.truncated for example in encoded)
        tokens = sum(len(example.input_ids) for example in encoded)
        self.observer.end(f"{tokens:,} tokens" + (f"; {cut} examples cut at {data.max_length} tokens" if cut else ""))
        return encoded

    def score(self, suites: Sequence[Suite], adapter: str | None, leaks: Leaks) -> list[Score]:
        """Evaluate the base or the adapter on one set, under one protocol or two."""
        if not suites:
            return []
        who, rows = "the base" if adapter is None else "the tuned model", sum(len(suite.examples) for suite in suites)
        self.observer.begin(f"evaluating {who} on {rows} rows of {suites[0].task.name}", rows)
        scores = evaluate(
            self.model, self.tokenizer, suites, [adapter], settings=self.config.evaluate, folder=self.folder / "eval",
            leaked=leaks, on_row=self.observer.advance,
        )  # fmt: skip
        said = [
            f"{each.accuracy:.1%} correct (95 % interval {each.low:.1%} to {each.high:.1%}), {each.unparsed} unparsed"
            + (f", protocol {each.protocol}" if len(scores) > 1 else "")
            for each in scores
        ]
        self.observer.end("; ".join(said))
        return scores

    def trained(
        self, encoded: Sequence[Encoded], judges: Sequence[Encoded], rows: Sequence[int], rate: float,
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
            result = self._train(encoded, judges, rows, rate, stop, by_accuracy=by_accuracy)
            here = time.perf_counter() - started
            self.adapter.save(saved, overwrite=True)
            write_whole(record, json.dumps(asdict(result)) + "\n")
            if stop is not None and stop.asked:  # after the last look of the loop
                raise Stopped("stopped after training")
        detach(self.model, ADAPTER)
        attach(self.model, saved, ADAPTER)
        return result, max(0.0, result.seconds - here)

    def _train(
        self, encoded: Sequence[Encoded], judges: Sequence[Encoded], rows: Sequence[int], rate: float,
        stop: Stop | None, *, by_accuracy: Suite | None,
    ) -> TrainResult:  # fmt: skip
        self.observer.begin(f"training at learning rate {rate:g}", total_steps(len(encoded), self.config.train))
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
            accuracy=answered if by_accuracy else None, rows=rows, stop=stop,
            on_step=on_step, on_note=self.observer.note,
        )  # fmt: skip
        right = result.best_accuracy
        said = f"{result.best_loss or 0:.3f}" + (f", {right:.1%} correct," if right is not None else "")
        best = f"; best validation {said} after step {result.best_step}" if result.best_step else ""
        self.observer.end(f"{result.steps} steps, loss {result.first_loss:.3f} → {result.last_loss:.3f}{best}")
        return result
