"""What a study file may say; see docs/studies.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llm_adapters.config.files import assign, read_yaml
from llm_adapters.config.schema import Count, Rate
from llm_adapters.config.strict import Strict
from llm_adapters.errors import ConfigError, UserError
from llm_adapters.study.axes import Block, Rule, read_axis, read_rule
from llm_adapters.study.fields import flat

Measure = Literal["parameters", "flops", "memory", "time"]


class Budget(Strict):
    """Every run costs the same: so much (``to``), or as much as the run on its model that has the labels ``like``."""

    match: Measure
    to: Rate | None = None
    like: dict[str, Any] | None = None
    within: Annotated[float, Field(gt=0, lt=1)] = 0.02

    @model_validator(mode="after")
    def _one_of_them(self) -> Budget:
        if (self.to is None) == (self.like is None):
            raise ConfigError("a budget is either 'to' a number or 'like' a run", mend="like: {method: lora}")
        return self


class Search(Strict):
    """Adaptive search instead of the grid: ``runs`` are proposed by Optuna.

    With ``halving`` (asynchronous successive halving by thirds, Li et al. 2020) a run ends after a ninth or a third of
    its steps unless its training loss there is in the best third of all runs so far.
    """

    sampler: Literal["tpe", "random"] = "tpe"
    runs: Count
    halving: bool = False
    seed: int = 0


class StudyFile(Strict):
    """The sections of a study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "study"
    base: str | None = None
    run: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()
    where: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    random: Count | None = None
    random_seed: int = 0
    budget: Budget | None = None
    search: Search | None = None
    evaluate: bool = True
    objective: Literal["accuracy", "validation_loss", "last_loss"] = "accuracy"

    @model_validator(mode="after")
    def _judged(self) -> StudyFile:
        if self.objective == "accuracy" and not self.evaluate:
            raise ConfigError("nothing is evaluated, so accuracy cannot be the objective", mend="objective: last_loss")
        return self


_JUDGED = {"evaluate", "objective"}


@dataclass(frozen=True)
class Study:
    """A study file, understood.

    Attributes:
        file: as it is written, with defaults.
        run: the base run, as plain data.
        axes: their blocks.
        where, exclude: which combinations are kept, and left out.
        folder: where the file lies.
    """

    file: StudyFile
    run: dict[str, Any]
    axes: Mapping[str, tuple[Block, ...]]
    where: tuple[Rule, ...]
    exclude: tuple[Rule, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Of the study."""
        return self.file.name

    def resolved(self) -> dict[str, Any]:
        """As plain data without references to other files; reads back as the same study."""
        axes = {
            axis: [
                {"when": {name: list(labels) for name, labels in block.when.items()}}
                | ({"range": block.range.model_dump()} if block.range else {"values": _plain(axis, block)})
                for block in blocks
            ]
            for axis, blocks in self.axes.items()
        }
        record = self.file.model_dump(mode="json", exclude={"base"})
        return record | {"run": self.run, "axes": axes}


def _plain(axis: str, block: Block) -> dict[str, Any]:
    """Labels to bundles; under the path of a field, to the field's value."""
    one_field = "." in axis or axis == "adapter"
    return {name: fields[0][1] if one_field else dict(fields) for name, fields in block.values.items()}


def read_spec(data: Mapping[str, Any], folder: Path) -> tuple[Study, list[str]]:
    """A study from plain data, and all its mistakes; what is mistaken is left out of it.

    Args:
        data: the sections of the file.
        folder: where it lies; the files that it names are looked for there.
    """
    problems: list[str] = []
    file, mistakes = StudyFile.attempt(data)
    if file is None:
        problems += [text for _, text in mistakes]
        bad = {section for section, _ in mistakes} | _JUDGED  # those two may contradict each other
        file = StudyFile.model_validate({key: value for key, value in data.items() if key not in bad})
    run: dict[str, Any] = {}
    try:
        run = read_yaml(folder / file.base) if file.base is not None else {}
    except UserError as failure:
        problems.append(f"base: {failure}")
    run = assign({key: value for key, value in run.items() if key != "name"}, flat(file.run))
    axes: dict[str, tuple[Block, ...]] = {}
    for axis, raw in file.axes.items():
        try:
            blocks = read_axis(axis, raw, folder)
            for block in blocks:
                read_rule({name: list(labels) for name, labels in block.when.items()}, axes, f"axis '{axis}', when")
            axes[axis] = blocks
        except UserError as failure:
            problems.append(str(failure))
    rules: dict[str, list[Rule]] = {"where": [], "exclude": []}
    for what, given in (("where", file.where), ("exclude", file.exclude)):
        for rule in given:
            if any(axis in file.axes and axis not in axes for axis in rule):
                continue  # the axis is the mistake, and has been told
            try:
                rules[what].append(read_rule(rule, axes, what))
            except UserError as failure:
                problems.append(str(failure))
    return Study(file, run, axes, tuple(rules["where"]), tuple(rules["exclude"]), folder), problems
