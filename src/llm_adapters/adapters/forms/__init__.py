"""Forms: what an adapter computes.

Shape letters: B batch, T tokens, D width, R rank, F bottleneck, P virtual tokens, H heads.
"""

from llm_adapters.adapters.forms.bottleneck import Bottleneck
from llm_adapters.adapters.forms.form import Form
from llm_adapters.adapters.forms.key_values import KeyValues, KVShape
from llm_adapters.adapters.forms.low_rank import LowRank
from llm_adapters.adapters.forms.virtual_tokens import VirtualTokens

__all__ = ["Bottleneck", "Form", "KVShape", "KeyValues", "LowRank", "VirtualTokens"]
