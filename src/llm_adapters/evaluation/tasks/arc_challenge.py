"""Science exam questions, the hard part (Clark et al. 2018); 7 rows have three or five options."""

from llm_adapters.evaluation.families import ANSWERS, Options

TASK = Options(
    name="arc_challenge",
    title="ARC-c",
    rows=1172,
    majority=311 / 1172,
    chance=1 / 4,
    labels=ANSWERS,
)
