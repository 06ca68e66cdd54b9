"""Comparisons in, a personal scorer out: what to compare, votes, training, calibration, metrics.

`train` fits a head to what a base sees, `finetune` trains all of it.

from tastemaker.preferences import read_comparisons, train

trained = train("comparisons.json", base="nano", out="my-taste")
trained.scorer.score(["a.png"])
"""

from .comparisons import Comparisons, read_comparisons, write_comparisons
from .finetune import Finetuned, finetune
from .problems import Problems, problems
from .train import Trained, train

__all__ = [
    "Comparisons",
    "Finetuned",
    "Problems",
    "Trained",
    "finetune",
    "problems",
    "read_comparisons",
    "train",
    "write_comparisons",
]
