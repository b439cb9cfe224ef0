"""Science exam questions, the easy part (Clark et al. 2018); 11 rows have three or five options."""

from llm_adapters.evaluation.families import ANSWERS, Options

TASK = Options(
    name="arc_easy",
    title="ARC-e",
    rows=2376,
    majority=633 / 2376,
    chance=1 / 4,
    labels=ANSWERS,
)
