"""Word problems from several collections (Koncel-Kedziorski et al. 2016); the reference's later set."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="mawps", title="MAWPS", rows=238, majority=11 / 238, leaked=True, in_paper=False)
