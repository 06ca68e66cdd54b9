"""Scorers in the sampling loop.

`rewards`, `guide` and `record` are shared by every host; `schedulers`, `tap`, `decode`, `pipelines`,
`sampling`, `search`, `halving` and `prune` are for diffusers' pipelines, by their attributes: none of
them imports it.
"""

from .decode import Decoder
from .pipelines import RewardCallback, reward_guidance
from .record import Record, SearchResult
from .search import best_of_n
from .tap import Step, tap

__all__ = [
    "Decoder",
    "Record",
    "RewardCallback",
    "SearchResult",
    "Step",
    "best_of_n",
    "reward_guidance",
    "tap",
]
