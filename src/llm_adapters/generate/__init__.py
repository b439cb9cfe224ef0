"""Generation: batched decoding on the model as it is, adapters attached."""

from llm_adapters.generate.decoding import Completion, generate

__all__ = ["Completion", "generate"]
