"""Addition and subtraction word problems (Hosseini et al. 2014)."""

from llm_adapters.evaluation.families import Arithmetic

TASK = Arithmetic(name="addsub", title="AddSub", rows=395, majority=12 / 395, leaked=True)
