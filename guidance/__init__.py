"""Scorers in the sampling loop.

`rewards`, `guide`, `record`, `resample` and `latents` are shared by every host. The others are for
diffusers' pipelines, by their attributes: none of them imports it.
"""

from .calibrate import PruningCalibration, calibrate_pruning
from .decode import Decoder
from .noise import optimize_noise, search_noise
from .particles import steer_particles
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
    "optimize_noise",
    "reward_guidance",
    "search_noise",
    "steer_particles",
    "tap",
]
