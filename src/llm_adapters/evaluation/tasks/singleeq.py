"""Word problems of one equation (Koncel-Kedziorski et al. 2015)."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="singleeq", title="SingleEq", rows=508, majority=17 / 508, leaked=True)
