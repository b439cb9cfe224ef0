"""What the members of a cohort have in common: the step that they go on from, and what the base draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from llm_adapters.train.checkpoint import Checkpoints, damage


def common_step(members: Sequence[tuple[Checkpoints, int | None]], note: Callable[[str], None]) -> int:
    """The last step that every member can go on from; 0 if there is none. One whose best is lost comes last.

    A member takes part in all steps up to its end. So it needs a checkpoint of the step that the others go on from,
    unless it had ended by then: what goes through the model together decides the last bits.

    Args:
        members: checkpoints of each, and the step after which it ended, if it has.
        note: told of damage.
    """
    for checkpoints, _ in members:
        checkpoints.tidy()
    known = {step for checkpoints, _ in members for step in checkpoints.steps()}
    steps = sorted(known | {end for _, end in members if end is not None}, reverse=True)
    without_best, damaged = 0, dict[Path, str]()
    found = 0
    for step in steps:
        needed = [checkpoints for checkpoints, end in members if end is None or end > step]
        there = [checkpoints for checkpoints in needed if checkpoints.at(step).is_dir()]
        problems = {checkpoints.at(step): checkpoints.problem(step) for checkpoints in there}
        damaged |= {path: problem for path, problem in problems.items() if problem is not None}
        if len(there) == len(needed):
            if not any(problems.values()):
                found = step
                break
            if not any(map(damage, problems)):
                without_best = max(step, without_best)
    found = found or without_best
    for path, problem in damaged.items():
        if path.name == f"step-{found}":
            note(f"{problem}: it is lost, and the best is looked for anew")
        else:
            note(f"the checkpoint '{path}' cannot be used: {problem}")
    return found


def draws_of_its_own(model: nn.Module) -> str | None:
    """A note if the base has dropout, which is drawn for all members at once; None if it has none."""
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    in_attention = getattr(getattr(model, "config", None), "attention_dropout", 0.0) or 0.0
    if not modules and in_attention == 0.0:
        return None
    return "the base itself has dropout: what it drops for a member differs from that member's training alone"
