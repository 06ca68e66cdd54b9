"""Scorers in the sampling loop.

`rewards`, `guide` and `record` are shared by every host; `schedulers`, `tap`, `decode`, `pipelines`,
`sampling`, `search`, `halving`, `prune` and `calibrate` are for diffusers' pipelines, by their attributes: none of
them imports it.
"""

from .calibrate import PruningCalibration, calibrate_pruning
from .decode import Decoder
from .pipelines import RewardCallback, reward_guidance
from .record import Record, SearchResult
from .search import best_of_n
from .tap import Step, tap

__all__ = [
    "Decoder",
    "PruningCalibration",
    "Record",
    "RewardCallback",
    "SearchResult",
    "Step",
    "best_of_n",
    "calibrate_pruning",
    "reward_guidance",
    "tap",
]
