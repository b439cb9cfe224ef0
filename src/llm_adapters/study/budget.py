"""Budgets: every run gets the size at which it costs the same as the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_adapters.adapters.method import Method
from llm_adapters.errors import ConfigError, UserError
from llm_adapters.study.axes import fits, read_rule
from llm_adapters.study.bases import Bases
from llm_adapters.study.costs import UNITS, Costs
from llm_adapters.study.expand import Problems, Trial, identified
from llm_adapters.study.fields import SIZE, SIZES
from llm_adapters.study.spec import Budget, Study

_LARGEST = 2**24
_SIZE_FIELDS = {SIZE, *(f"adapter.{field}" for field in SIZES)}


def matched(study: Study, trials: Sequence[Trial], bases: Bases) -> tuple[list[Trial], list[str]]:
    """The runs at equal cost, each with what was chosen for it, and why that is not possible.

    A LoRA keeps its scale: alpha changes with the rank.

    Args:
        study: with a budget, or without: then the runs come back as they are.
        trials: its runs.
        bases: their models.
    """
    budget = study.file.budget
    if budget is None or not trials:
        return list(trials), []
    problems = Problems(len(trials))
    try:
        _refuse(study, budget)
        like = read_rule(budget.like or {}, study.axes, "budget.like")
        if budget.like == {}:
            raise ConfigError("budget.like is empty", mend="like: {method: lora}")
    except UserError as failure:
        return list(trials), [str(failure)]
    found = []
    costs = Costs(budget.match, bases)
    for trial in trials:
        try:
            reference = [
                other for other in trials
                if other.config.model == trial.config.model and budget.to is None and fits(other.axes, like)
            ]  # fmt: skip
            goal = _goal(budget, reference, costs)
            found.append(trial if trial in reference else _sized(trial, goal, budget, bases, costs))
        except UserError as failure:
            problems.add(f"budget: {failure}", trial.axes)
    return found, problems.told()


def _refuse(study: Study, budget: Budget) -> None:
    """Refuse what no size could satisfy.

    Raises:
        ConfigError: a search has no run to be like, or an axis is nothing but the size.
    """
    if budget.like is not None and study.file.search:
        raise ConfigError("a search knows no run that the others could be 'like'", mend="budget: {to: 2000000}")
    for axis, blocks in study.axes.items():
        values = [fields for block in blocks for fields in block.values.values()]
        if any(fields and {path for path, _ in fields} <= _SIZE_FIELDS for fields in values):
            raise ConfigError(f"axis '{axis}' sets the size, and so does the budget", mend="leave one of the two out")


def _goal(budget: Budget, reference: Sequence[Trial], costs: Costs) -> float:
    """What every run on one model has to cost.

    Raises:
        ConfigError: no run is the reference, or several of different cost are.
    """
    if budget.to is not None:
        return budget.to
    found = sorted({costs.of(trial.config) for trial in reference})
    if len(found) != 1:
        told = "no run" if not found else f"runs of different cost ({', '.join(f'{cost:,}' for cost in found)})"
        raise ConfigError(f"'like' matches {told} on this model", mend="name more labels, so that one run is meant")
    return found[0]


def _sized(trial: Trial, goal: float, budget: Budget, bases: Bases, costs: Costs) -> Trial:
    """The run with the size that brings it nearest to ``goal``.

    Raises:
        ConfigError: its methods have no one size, or no size is near enough.
    """
    if len(trial.config.adapter) != 1:
        raise ConfigError("a list of methods has no one size", mend="leave it out of a study with a budget")
    (method,) = trial.config.adapter
    field = next((field for field in SIZES if field in type(method).model_fields), None)
    if field is None:
        raise ConfigError(f"the method '{method.name()}' has no size", mend="leave it out of a study with a budget")

    def cost(size: int) -> int:
        return costs.of(trial.config.model_copy(update={"adapter": (_resized(method, field, size),)}))

    below = _largest_below(cost, goal)
    sizes = [size for size in (below, below + 1) if size > 0]
    best = min(sizes, key=lambda size: abs(cost(size) - goal))
    off = cost(best) / goal - 1
    if abs(off) > budget.within:
        options = " and ".join(f"{field} {size} costs {cost(size):,}" for size in sizes)
        raise ConfigError(
            f"no {field} of '{method.name()}' costs {goal:,.0f} {UNITS[budget.match]} within {budget.within:.0%}: "
            f"the nearest, {options}", mend="another budget, other sites or layers, or a larger budget.within",
        )  # fmt: skip
    recipe = _resized(method, field, best)
    config = trial.config.model_copy(update={"adapter": (recipe,)})
    alpha = f" (alpha {recipe.alpha:g})" if hasattr(recipe, "alpha") else ""
    chosen = f"{field} {best}{alpha}: {cost(best):,} {UNITS[budget.match]}, {off:+.2%} of the budget"
    return identified(replace(trial, config=config, parameters=bases.count(config.model, (recipe,)), chosen=chosen))


def _resized(method: Method, field: str, size: int) -> Method:
    update: dict[str, object] = {field: size}
    if field == "rank" and hasattr(method, "alpha"):
        ratio = size / getattr(method, field)
        update["alpha"] = method.alpha * (math.sqrt(ratio) if getattr(method, "rslora", False) else ratio)
    return method.model_copy(update=update)


def _largest_below(cost: Callable[[int], int], goal: float) -> int:
    """The largest size that costs no more than ``goal``; 0 if every size costs more. Costs grow with size.

    Nearly always by a fixed amount a unit of size, which finds it in a few looks; some costs are dear to look at.
    """
    first = cost(1)
    if first > goal:
        return 0
    slope = cost(2) - first
    guess = 1 + int((goal - first) / slope) if slope > 0 else 0
    if 0 < guess < _LARGEST and cost(guess) <= goal < cost(guess + 1):
        return guess
    low, high = 1, 2
    while high < _LARGEST and cost(high) <= goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= goal else (low, middle)
    return low
