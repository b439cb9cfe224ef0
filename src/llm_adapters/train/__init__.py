"""Training: the loop, its schedule, its checkpoints."""

from llm_adapters.train.loop import TrainResult, total_steps, train

__all__ = ["TrainResult", "total_steps", "train"]
