"""One-step word problems with varied wording (Patel et al. 2021)."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="svamp", title="SVAMP", rows=1000, majority=77 / 1000)
