"""From a study to its runs: every one checked as far as that is possible without weights, before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_adapters.adapters.method import methods, parse_method
from llm_adapters.config.files import assign
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.seeding import stable_random
from llm_adapters.errors import ConfigError, UserError
from llm_adapters.study.axes import Combination, draw, fits, grid, label
from llm_adapters.study.bases import Bases
from llm_adapters.study.fields import check_field, with_fields
from llm_adapters.study.spec import Study
from llm_adapters.study.trials import described

_CHECKED = 64  # combinations of a search
_DRAWS = 200  # for every run asked for at random, before saying that there are not so many


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        id: digest of its configuration without the name, so that the same run is the same in every plan.
        axes: its label on each axis.
        config: its configuration; its name is the id.
        parameters: that it trains.
        steps: of its training; 0 until the data have been looked at.
        rows: that it evaluates, those of the base not counted.
        chosen: what the budget chose, if there is one.
    """

    id: str
    axes: dict[str, str]
    config: RunConfig
    parameters: int = 0
    steps: int = 0
    rows: int = 0
    chosen: str = ""


@dataclass
class Problems:
    """Mistakes of single runs, told once with the runs that have them."""

    total: int
    found: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)

    def add(self, problem: str, axes: Mapping[str, str]) -> None:
        """One mistake of one run."""
        self.found.setdefault(problem, []).append(axes)

    def told(self) -> list[str]:
        """A text for each."""
        return [
            f"{problem}\n  on {len(runs)} of {self.total} runs, the first: {described(runs[0])}"
            for problem, runs in self.found.items()
        ]


def expand(study: Study, bases: Bases) -> tuple[list[Trial], list[str]]:
    """The runs of a study, and all that is wrong with them.

    Args:
        study: without search, whose runs follow from results.
        bases: where models without weights come from.
    """
    try:
        found = combinations(study)
    except UserError as failure:
        return [], [str(failure)]
    problems, trials = Problems(len(found)), []
    for axes, fields in found:
        trial = attempt(study, (axes, fields), bases, problems)
        if trial is not None:
            trials.append(trial)
    return trials, problems.told()


def unique(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """Each run once, and what is wrong where two are the same."""
    problems, by_id = Problems(len(trials)), dict[str, Trial]()
    for trial in trials:
        twin = by_id.setdefault(trial.id, trial)
        if twin is not trial:
            problems.add(
                f"this is the same run as {described(twin.axes)}: an axis changes nothing here\n"
                "  mend:    give its values a 'when', or exclude one of the two", trial.axes,
            )  # fmt: skip
    return list(by_id.values()), problems.told()


def combinations(study: Study) -> list[Combination]:
    """Labels and fields of every run: listed, drawn at random, or the whole grid.

    Raises:
        ConfigError: there is none, or not so many.
    """
    file = study.file
    if not study.axes and not file.runs:
        raise ConfigError("the study has neither axes nor runs", mend="axes: {method: [lora, series]}")
    if file.runs:
        if file.random or file.search:
            raise ConfigError("the study lists its runs and asks for random ones or a search", mend="one of them")
        return [_listed(study, run) for run in file.runs]
    ranged = [axis for axis, blocks in study.axes.items() if any(block.range for block in blocks)]
    if file.random:
        return _drawn(study, file.random)
    if file.search:
        return _sampled(study)
    if ranged:
        raise ConfigError(f"axis '{ranged[0]}' is a range, which has no end of values", mend="random: 20, or a search")
    kept = [each for each in grid(study.axes) if is_kept(study, each[0])]
    if not kept:
        raise ConfigError("'where' and 'exclude' leave no run", mend="loosen them")
    return kept


def is_kept(study: Study, axes: Mapping[str, str]) -> bool:
    """Whether the study's conditions keep a combination."""
    wanted = not study.where or any(fits(axes, rule) for rule in study.where)
    return wanted and not any(fits(axes, rule) for rule in study.exclude)


def attempt(study: Study, combination: Combination, bases: Bases, problems: Problems) -> Trial | None:
    """One run, or None and what is wrong with it."""
    axes, fields = combination
    try:
        data = with_fields(study.run, fields)
    except UserError as failure:
        problems.add(str(failure), axes)
        return None
    # All runs are evaluated on the same rows, or they could not be compared row by row.
    data = assign({"evaluate": {}, **data}, [])
    if isinstance(data["evaluate"], dict):
        data["evaluate"] = {"seed": study.run.get("seed", 0), **data["evaluate"]}
    config, mistakes = RunConfig.attempt(data, context={"parse_method": parse_method, "methods": list(methods())})
    for _, text in mistakes:
        problems.add(text, axes)
    if config is None:
        return None
    if study.file.objective == "validation_loss" and config.data.validation is None:
        problems.add("the objective validation_loss needs validation data\n  mend:    data.validation: 100", axes)
    try:
        parameters = bases.count(config.model, config.adapter)
    except UserError as failure:
        problems.add(str(failure), axes)
        return None
    return identified(Trial("", axes, config, parameters))


def identified(trial: Trial) -> Trial:
    """The trial with the id that follows from its configuration."""
    record = trial.config.model_dump(mode="json", exclude={"name"})
    id_ = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:10]
    return replace(trial, id=id_, config=trial.config.model_copy(update={"name": id_}))


def _listed(study: Study, run: Mapping[str, Any]) -> Combination:
    """A run of the list ``runs``: labels of axes, and fields."""
    axes: dict[str, str] = {}
    fields: list[tuple[str, Any]] = []
    for key, value in run.items():
        name = label(value)
        known = _values_of(study, key, axes)
        if known is None:
            fields.append((check_field(key), value))
        elif name in known:
            fields += known[name]
        else:
            raise ConfigError(f"runs: axis '{key}' has no value '{name}' here", given=name, allowed=known)
        axes[key] = name
    return axes, tuple(fields)


def _values_of(study: Study, axis: str, axes: Mapping[str, str]) -> dict[str, Iterable[tuple[str, Any]]] | None:
    if axis not in study.axes:
        return None
    return {name: f for block in study.axes[axis] if fits(axes, block.when) for name, f in block.values.items()}


def _sampled(study: Study) -> list[Combination]:
    """Some of what a search may propose, to be checked before it begins."""
    drawn = (draw(study.axes, stable_random("search", i)) for i in range(_CHECKED))
    kept = {json.dumps(axes): (axes, fields) for axes, fields in drawn if is_kept(study, axes)}
    if not kept:
        raise ConfigError("'where' and 'exclude' leave hardly a run to a search", mend="loosen them")
    return list(kept.values())


def _drawn(study: Study, count: int) -> list[Combination]:
    """``count`` different combinations; a larger count begins with the same ones."""
    found: dict[str, Combination] = {}
    for i in range(count * _DRAWS):
        if len(found) == count:
            break
        drawn = draw(study.axes, stable_random("study", study.file.random_seed, i))
        if is_kept(study, drawn[0]):
            found.setdefault(json.dumps(drawn[0]), drawn)
    if len(found) < count:
        raise ConfigError(
            f"random: {count} runs were asked for, and only {len(found)} different ones were found",
            mend="a smaller number, or leave 'random' out: that is the whole grid",
        )
    return list(found.values())
