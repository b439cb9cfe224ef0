"""Elementary science facts applied (Mihaylov et al. 2018)."""

from llm_adapters.evaluation.families import ANSWERS, Options

TASK = Options(
    name="openbookqa",
    title="OBQA",
    rows=500,
    majority=138 / 500,
    chance=1 / 4,
    labels=ANSWERS,
)
