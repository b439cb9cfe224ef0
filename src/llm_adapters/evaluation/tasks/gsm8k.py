"""Grade-school word problems of two to eight steps (Cobbe et al. 2021)."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="gsm8k", title="GSM8K", rows=1319, majority=40 / 1319)
