"""Social situations, what people do and feel (Sap et al. 2019)."""

from llm_adapters.evaluation.families import ANSWERS, Options

TASK = Options(
    name="siqa",
    title="SIQA",
    rows=1954,
    majority=657 / 1954,
    chance=1 / 3,
    labels=ANSWERS,
)
