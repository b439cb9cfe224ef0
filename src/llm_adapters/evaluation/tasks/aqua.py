"""Algebra word problems with five choices (Ling et al. 2017)."""

from llm_adapters.evaluation.families import Letters

TASK = Letters(name="aqua", title="AQuA", rows=254, majority=63 / 254, chance=1 / 5)
