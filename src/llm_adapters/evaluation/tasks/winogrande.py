"""Which of two names fills the blank (Sakaguchi et al. 2021)."""

from llm_adapters.evaluation.families import Options

TASK = Options(
    name="winogrande",
    title="WinoGrande",
    rows=1267,
    majority=639 / 1267,
    chance=1 / 2,
    labels=("option1", "option2"),
)
