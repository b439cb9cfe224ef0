"""Training: the loop, its schedule, its checkpoints."""

from llm_adapters.train.cohort import train_cohort
from llm_adapters.train.failure import FAILED
from llm_adapters.train.member import Member
from llm_adapters.train.metrics import Metrics, RecentRate
from llm_adapters.train.options import ALONE
from llm_adapters.train.order import total_steps
from llm_adapters.train.stop import Stop
from llm_adapters.train.team import Team
from llm_adapters.train.trackers import check_trackers
from llm_adapters.train.training import TrainResult, has_label, train

__all__ = [
    "ALONE", "FAILED", "Member", "Metrics", "RecentRate", "Stop", "Team", "TrainResult", "check_trackers",
    "has_label", "total_steps", "train", "train_cohort",
]  # fmt: skip
