"""Comparisons in, a personal scorer out: what to compare, votes, training, calibration, metrics.

from tastemaker.preferences import read_comparisons, train

trained = train("comparisons.json", base="nano", out="my-taste")
trained.scorer.score(["a.png"])
"""

from .comparisons import Comparisons, read_comparisons, write_comparisons
from .train import Trained, train

__all__ = ["Comparisons", "Trained", "read_comparisons", "train", "write_comparisons"]
