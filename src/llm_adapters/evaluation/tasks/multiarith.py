"""Multi-step word problems (Roy & Roth 2015)."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="multiarith", title="MultiArith", rows=600, majority=43 / 600, leaked=True)
