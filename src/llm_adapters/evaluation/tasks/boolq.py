"""Yes-or-no questions, here without their passages (Clark et al. 2019)."""

from llm_adapters.evaluation.families import TRUTH, Options

TASK = Options(
    name="boolq",
    title="BoolQ",
    rows=3270,
    majority=2033 / 3270,
    chance=1 / 2,
    labels=TRUTH,
)
