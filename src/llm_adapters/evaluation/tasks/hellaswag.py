"""Which ending completes a description (Zellers et al. 2019)."""

from llm_adapters.evaluation.families import Options

TASK = Options(
    name="hellaswag",
    title="HellaSwag",
    rows=10042,
    majority=2584 / 10042,
    chance=1 / 4,
    labels=("ending1", "ending2", "ending3", "ending4"),
)
