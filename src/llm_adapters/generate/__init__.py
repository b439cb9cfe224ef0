"""Generation: batched decoding on the model as it is, adapters attached."""

from llm_adapters.generate.greedy import Completion, generate

__all__ = ["Completion", "generate"]
