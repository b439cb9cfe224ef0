"""Which of two ways reaches a practical goal (Bisk et al. 2020)."""

from llm_adapters.evaluation.families import Options

TASK = Options(
    name="piqa",
    title="PIQA",
    rows=1838,
    majority=928 / 1838,
    chance=1 / 2,
    labels=("solution1", "solution2"),
)
