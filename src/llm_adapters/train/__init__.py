"""Training: the loop, its schedule, its checkpoints."""

from llm_adapters.train.metrics import Metrics, RecentRate
from llm_adapters.train.order import total_steps
from llm_adapters.train.stop import Stop
from llm_adapters.train.trackers import check_trackers
from llm_adapters.train.training import TrainResult, train

__all__ = ["Metrics", "RecentRate", "Stop", "TrainResult", "check_trackers", "total_steps", "train"]
