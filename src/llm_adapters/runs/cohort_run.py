"""A cohort under way: one base for all of its runs, from loading it to the manifests."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import attach, detach, rename
from llm_adapters.data.encoding import Encoded
from llm_adapters.errors import Stopped, TrainingError
from llm_adapters.evaluation.leaks import Leaks
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.evaluation.runner import Part, evaluate_parts
from llm_adapters.evaluation.score import Score, means, write_summary
from llm_adapters.model import load_model
from llm_adapters.model.quantised_linears import parameter_count
from llm_adapters.runs.folder import write_whole
from llm_adapters.runs.names import MANIFEST, TRAINING
from llm_adapters.runs.run import ADAPTER, Observer, encode, forgetting, in_words, result_in_words
from llm_adapters.runs.run_plan import RunPlan
from llm_adapters.train import Member, Metrics, RecentRate, Stop, TrainResult, has_label, total_steps, train_cohort


@dataclass(frozen=True)
class Seat:
    """A run of the cohort; ``name`` is its adapter's on the model."""

    name: str
    plan: RunPlan
    folder: Path

    @property
    def eval(self) -> Path:
        """Where its predictions lie."""
        return self.folder / "eval"

    def result(self) -> TrainResult | None:
        """What its training took and gave, if that has ended."""
        record = self.folder / TRAINING
        return TrainResult(**json.loads(record.read_text(encoding="utf-8"))) if record.exists() else None


@dataclass(frozen=True)
class CohortRun:
    """The runs of a cohort that are not complete, on one model."""

    seats: Sequence[Seat]
    observer: Observer
    cohort: Mapping[str, Any]
    stop: Stop
    model: Any
    tokenizer: Any
    adapters: Mapping[str, Adapter]
    base_parameters: int
    _encoded: dict[str, list[Encoded]] = field(default_factory=dict)
    _leaks: dict[str, Leaks] = field(default_factory=dict)

    @classmethod
    def prepare(cls, seats: Sequence[Seat], observer: Observer, cohort: Mapping[str, Any], stop: Stop) -> CohortRun:
        """Load the base, and attach every adapter as its run by itself would."""
        source = seats[0].plan.config.model
        observer.begin(f"loading {source.source}", None)
        model, tokenizer = load_model(
            source.source, dtype=source.dtype, quantization=source.quantization,
            trust_remote_code=source.trust_remote_code,
        )  # fmt: skip
        total = parameter_count(model)
        adapters = {}
        for seat in seats:
            torch.manual_seed(seat.plan.config.seed)
            adapters[seat.name] = attach(model, list(seat.plan.config.adapter), seat.name, tokenizer=tokenizer)
        trained = sum(adapter.count() for adapter in adapters.values())
        observer.end(f"{total:,} frozen parameters, {trained:,} trained in {len(seats)} adapters")
        return cls(seats, observer, cohort, stop, model, tokenizer, adapters, total)

    def carry_out(self, started: float) -> dict[Path, str]:
        """Evaluate, train, evaluate again, all runs together; gives by folder why runs failed."""
        members = [self._member(seat) for seat in self.seats]
        before = self._score(self.seats, tuned=False)
        began = time.perf_counter()
        failed = self._train(members)
        here = time.perf_counter() - began
        whole = [seat for seat in self.seats if seat.folder not in failed]
        for seat in whole:
            detach(self.model, seat.name)
            attach(self.model, seat.folder / "adapter", seat.name)
        after = self._score(whole, tuned=True)
        for seat in whole:
            result = seat.result()
            assert result is not None
            if seat.plan.suites:
                averages = means([read_rows(seat.eval / suite.file) for suite in seat.plan.suites])
                write_summary([*before[seat.name], *after[seat.name]], averages, seat.eval / "summary.json")
            config, asked = seat.plan.config, bool(seat.plan.suites)
            manifest = seat.plan.manifest(
                self.adapters[seat.name], result, self._encode(seat, validation=False),
                base_parameters=self.base_parameters,
                forgetting=forgetting(config, self.model, self.tokenizer, seat.name, self.observer) if asked else None,
                seconds=time.perf_counter() - started - here + result.seconds,
            )  # fmt: skip
            text = json.dumps({**manifest, "cohort": self.cohort}, indent=2, ensure_ascii=False)
            write_whole(seat.folder / MANIFEST, text + "\n")
        return failed

    def _encode(self, seat: Seat, *, validation: bool) -> list[Encoded]:
        """The examples of a run; those of runs with the same data are encoded once."""
        plan, what = seat.plan, "validation" if validation else "training"
        data = plan.config.data
        key = json.dumps([plan.digests[what], data.template, data.max_length, data.train_on])
        if key not in self._encoded:
            examples = plan.data.validation if validation else plan.data.examples
            self._encoded[key] = encode(plan.config, self.tokenizer, examples, what, self.observer)
        return self._encoded[key]

    def _leaked(self, seat: Seat) -> Leaks:
        """What a run's data give away; what its best was chosen on counts as trained on."""
        plan = seat.plan
        key = json.dumps([plan.digests, id(plan.suites)])
        if key not in self._leaks:
            self._leaks[key] = Leaks({ADAPTER: [*plan.data.examples, *plan.data.validation]}, plan.suites)
        return self._leaks[key]

    def _score(self, seats: Sequence[Seat], *, tuned: bool) -> dict[str, list[Score]]:
        """Evaluate every run's adapter, or the base for each; runs with the same settings together."""
        groups: dict[str, list[Seat]] = {}
        for seat in seats:
            if seat.plan.suites:
                settings = seat.plan.config.evaluate.model_dump_json(exclude={"data", "size", "seed", "protocol"})
                groups.setdefault(settings, []).append(seat)
        found: dict[str, list[Score]] = {}
        for group in groups.values():
            rows = sum(len(suite.examples) for seat in group for suite in seat.plan.suites)
            who = f"{len(group)} tuned models" if tuned else f"the base for {len(group)} runs"
            self.observer.begin(f"evaluating {who} on {rows} rows", rows)
            parts = [
                Part(seat.plan.suites, {ADAPTER: seat.name} if tuned else {None: None}, seat.eval, self._leaked(seat))
                for seat in group
            ]
            scores = evaluate_parts(
                self.model, self.tokenizer, parts, settings=group[0].plan.config.evaluate, on_row=self.observer.advance
            )
            found |= {seat.name: own for seat, own in zip(group, scores, strict=True)}
            said = [f"{seat.folder.name}: {in_words(own)}" for seat, own in zip(group, scores, strict=True)]
            self.observer.end("\n  ".join(["", *said]))
        return found

    def _member(self, seat: Seat) -> Member:
        config, result = seat.plan.config, seat.result()
        return Member(
            adapter=self.adapters[seat.name],
            examples=self._encode(seat, validation=False),
            settings=config.train,
            learning_rate=seat.plan.rate,
            seed=config.seed,
            folder=seat.folder,
            validation=self._encode(seat, validation=True),
            rows=seat.plan.data.rows,
            validation_rows=seat.plan.data.validation_rows,
            ended=None if result is None else result.steps,
        )

    def _train(self, members: Sequence[Member]) -> dict[Path, str]:
        """Train what has not ended; gives by folder why runs failed."""
        steps = max(total_steps(sum(map(has_label, member.examples)), member.settings) for member in members)
        self.observer.begin(f"training {len(members)} adapters at once", steps)
        done, last = 0, dict[int, Metrics]()
        recent: dict[int, RecentRate] = defaultdict(RecentRate)
        rates: dict[int, float] = {}

        def on_step(member: int, row: Metrics) -> None:
            nonlocal done
            last[member], rates[member] = row, recent[member].after(row)
            there = [who for who, its in last.items() if its["step"] >= row["step"] - 1]  # the others have left
            low, high = (pick(last[who]["loss"] for who in there) for pick in (min, max))
            rate = sum(rates[who] for who in there)
            self.observer.advance(int(row["step"]) - done, f"losses {low:.3f} to {high:.3f}, {rate:.0f} tokens/s")
            done = int(row["step"])

        def on_end(member: int, result: TrainResult) -> None:
            seat = self.seats[member]
            rename(self.model, seat.name, ADAPTER)
            self.adapters[seat.name].save(seat.folder / "adapter", overwrite=True)
            rename(self.model, ADAPTER, seat.name)
            write_whole(seat.folder / TRAINING, json.dumps(asdict(result)) + "\n")

        outcomes = train_cohort(
            self.model, members, pad_id=self.tokenizer.pad_token_id, rows=self.cohort["rows"], stop=self.stop,
            on_step=on_step, on_end=on_end, on_note=self.observer.note,
        )  # fmt: skip
        said = []
        failed: dict[Path, str] = {}
        for seat, outcome in zip(self.seats, outcomes, strict=True):
            if isinstance(outcome, TrainingError):
                failed[seat.folder] = str(outcome)
            result = seat.result()
            said.append(f"{seat.folder.name}: {'failed' if result is None else result_in_words(result)}")
        self.observer.end("\n  ".join(["", *said]))
        if self.stop.asked:  # after the last look of the training
            raise Stopped("stopped after training")
        return failed
