"""Adaptive search: Optuna proposes runs of the study's space from those that are finished.

Optuna keeps nothing: what it has to know is read from the ledger whenever it is asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_adapters.errors import ConfigError, MissingExtraError
from llm_adapters.runs.run import Observer
from llm_adapters.study.axes import Block, Combination, Range, fits, label
from llm_adapters.study.bases import Bases
from llm_adapters.study.budget import matched
from llm_adapters.study.expand import Problems, Trial, attempt, is_kept
from llm_adapters.study.ledger import Entry, Ledger
from llm_adapters.study.pruning import Early, Rungs, is_among_the_best, loss_at
from llm_adapters.study.spec import Search, Study
from llm_adapters.study.trials import described
from llm_adapters.study.work import Worker
from llm_adapters.train import Stop

_TRIES = 100  # proposals, before saying that nothing new is left


@dataclass(frozen=True)
class Adaptive:
    """Proposes a run, carries it out, proposes the next; several of these may share a study.

    Attributes:
        study: with a search.
        bases: the models that proposals are checked on.
    """

    study: Study
    bases: Bases

    def run(self, folder: Path, observer: Observer, stop: Stop) -> None:
        assert self.study.file.search is not None
        optuna = _optuna()
        with Worker.of(folder, observer, stop) as worker:
            while True:
                taken = worker.ledger.claim(worker.name) or worker.ledger.propose(
                    worker.name, self.study.file.search.runs, partial(self._proposal, optuna, worker.ledger)
                )
                if not taken:
                    return
                (entry,) = taken
                observer.note(f"run {entry.id}: {described(entry.axes)}")
                if not self.study.file.search.halving:
                    worker.settle(taken)
                    continue
                self._halve(worker, entry, stop)

    def _halve(self, worker: Worker, entry: Entry, stop: Stop) -> None:
        """Carry out a run that ends early unless it is in the best third of all that came as far."""
        early = Early(stop)

        def judge(step: int, loss: float) -> bool:
            others = [
                loss_at(worker.place.run(other.id), step) for other in worker.ledger.entries() if other.id != entry.id
            ]
            return not is_among_the_best(loss, [other for other in others if other is not None])

        watching = Rungs(worker.observer, worker.place.run(entry.id), judge, early)
        replace(worker, observer=watching, stop=early).settle([entry], ended_early=lambda: early.ended)

    def _proposal(self, optuna: Any, ledger: Ledger, entries: Sequence[Entry]) -> Trial:
        """A run that is not in the ledger yet.

        Raises:
            ConfigError: none is found, or it cannot be.
        """
        known = _known(optuna, self.study, entries)
        ids = {entry.id for entry in ledger.entries(planned=False)}  # also of an earlier plan
        for _ in range(_TRIES):
            asked = known.ask()
            combination = walk(self.study, partial(_suggested, asked))
            problems = Problems(1)
            trial = (
                attempt(self.study, combination, self.bases, problems) if is_kept(self.study, combination[0]) else None
            )
            if trial is not None:
                (trial,), wrong = matched(self.study, [trial], self.bases)
                if not wrong and trial.id not in ids:
                    return trial
            known.tell(asked, state=optuna.trial.TrialState.FAIL)
        raise ConfigError(
            f"{len(entries)} runs are in the ledger, and no other was found", mend="fewer search.runs, or more values"
        )


def walk(study: Study, choose: Callable[[str, Block], str | float]) -> Combination:
    """One combination, axis by axis; ``choose`` is given a name for the choice and what there is to choose from."""
    labels: dict[str, str] = {}
    fields: tuple[tuple[str, Any], ...] = ()
    for axis, blocks in study.axes.items():
        numbers = [number for number, block in enumerate(blocks) if fits(labels, block.when)]
        if not numbers:
            continue
        ranged = [blocks[number] for number in numbers if blocks[number].range]
        values = {name: f for number in numbers for name, f in blocks[number].values.items()}
        block = ranged[0] if ranged and not values else Block({}, values)
        chosen = choose("/".join([axis, *map(str, numbers)]), block)
        labels[axis] = label(chosen)
        fields = (*fields, *(values[str(chosen)] if block.range is None else ((block.path, chosen),)))
    return labels, fields


def sampler(optuna: Any, search: Search, finished: int) -> Any:
    """Optuna's sampler, whose draws follow from the seed and from how much is known."""
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return kinds[search.sampler](seed=search.seed + finished)


def _known(optuna: Any, study: Study, entries: Sequence[Entry]) -> Any:
    """What Optuna has to know, in memory."""
    search, objective = study.file.search, study.file.objective
    assert search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(
        direction="maximize" if objective == "accuracy" else "minimize",
        sampler=sampler(optuna, search, len(entries)),
    )
    for entry in entries:
        if entry.state in ("done", "failed"):
            with suppress(_OutOfSpace):
                made.add_trial(_frozen(optuna, study, entry, sign=-1 if objective == "accuracy" else 1))
    return made


class _OutOfSpace(Exception):  # noqa: N818 – the study's axes were changed
    """A run that the axes as they are now do not give; it tells the search nothing."""


def _frozen(optuna: Any, study: Study, entry: Entry, *, sign: int) -> Any:
    """A finished run as Optuna's trial: its choices, its score, or the loss at which it ended early.

    Raises:
        _OutOfSpace: an axis or a value of it is not in the study any more.
    """
    states, parameters, distributions = optuna.trial.TrialState, {}, {}

    def choose(name: str, block: Block) -> str | float:
        given = entry.axes.get(name.partition("/")[0])
        if given is None or (block.range is None and given not in block.values):
            raise _OutOfSpace
        value = given if block.range is None else _in_range(given, block.range)
        parameters[name], distributions[name] = value, _distribution(optuna, block)
        return value

    if walk(study, choose)[0].keys() != entry.axes.keys():
        raise _OutOfSpace
    score, early = entry.detail.get("score"), entry.detail.get("early")
    state = states.PRUNED if early else states.COMPLETE if entry.state == "done" and score is not None else states.FAIL
    return optuna.trial.create_trial(
        state=state, value=score if state == states.COMPLETE else None, params=parameters, distributions=distributions,
        intermediate_values={early[0]: sign * early[1]} if early else {},
    )  # fmt: skip


def _in_range(given: str, limits: Range) -> float:
    try:
        value = float(given)
    except ValueError as failure:
        raise _OutOfSpace from failure
    if not limits.low <= value <= limits.high:
        raise _OutOfSpace
    return value


def _distribution(optuna: Any, block: Block) -> Any:
    limits = block.range
    if limits is None:
        return optuna.distributions.CategoricalDistribution(list(block.values))
    if limits.integer:
        return optuna.distributions.IntDistribution(int(limits.low), int(limits.high), log=limits.log)
    return optuna.distributions.FloatDistribution(limits.low, limits.high, log=limits.log)


def _suggested(asked: Any, name: str, block: Block) -> str | float:
    limits = block.range
    if limits is None:
        return str(asked.suggest_categorical(name, list(block.values)))
    if limits.integer:
        return int(asked.suggest_int(name, int(limits.low), int(limits.high), log=limits.log))
    return float(f"{asked.suggest_float(name, limits.low, limits.high, log=limits.log):.4g}")


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as failure:
        raise MissingExtraError("optuna", "optuna", "adaptive search") from failure
