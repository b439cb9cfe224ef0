"""Generation: batched decoding on the model as it is, adapters attached."""

from llm_adapters.generate.beams import beam_search
from llm_adapters.generate.decoding import Completion, generate
from llm_adapters.generate.likelihood import Request, log_likelihoods
from llm_adapters.generate.sampling import Sampling

__all__ = ["Completion", "Request", "Sampling", "beam_search", "generate", "log_likelihoods"]
