"""The data that the runs of a study name: whether they are there, and how many steps and rows that makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm_adapters.data.templates import get_template
from llm_adapters.errors import UserError
from llm_adapters.evaluation.suite import Suite
from llm_adapters.runs.training_data import TrainingData
from llm_adapters.study.expand import Problems, Trial
from llm_adapters.train import total_steps


def with_data(trials: Sequence[Trial], *, score: bool) -> tuple[list[Trial], list[str]]:
    """The runs with their steps and rows, and what is wrong with their data. Every source is read once.

    Args:
        trials: the runs.
        score: whether they evaluate.
    """
    problems = Problems(len(trials))
    read: dict[str, int | UserError] = {}

    def once(key: str, count: object) -> int:
        if key not in read:
            try:
                read[key] = count()  # type: ignore[operator]
            except UserError as failure:
                read[key] = failure
        found = read[key]
        if isinstance(found, UserError):
            raise found
        return found

    checked = []
    for trial in trials:
        config, steps, rows = trial.config, 0, 0
        try:
            get_template(config.data.template)
            examples = once(
                config.data.model_dump_json(exclude={"template", "train_on", "max_length"}),
                lambda c=config: len(TrainingData.of(c.data, c.seed).examples),
            )
            steps = total_steps(examples, config.train)
            if score:
                rows = once(
                    config.evaluate.model_dump_json() + config.data.template,
                    lambda c=config: sum(len(s.examples) for s in Suite.asked(c.evaluate, c.seed, c.data.template)),
                )
        except UserError as failure:
            problems.add(str(failure), trial.axes)
        checked.append(replace(trial, steps=steps, rows=rows))
    return checked, problems.told()
