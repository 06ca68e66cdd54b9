"""A scorer's mean and deviation on a reference set: what puts different scorers on one scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .checks import Scores, as_real, as_scores, exact_dtype, positive


class ReferenceStatistics(NamedTuple):
    """Of the scores of one scorer on a named set, in the scorer's own unit."""

    mean: float
    std: float  # population deviation (divided by n); 0 if all scores are equal
    n: int  # how many scores it was measured on


def reference_statistics(scores: Scores) -> ReferenceStatistics:
    """Measure mean and deviation of the scores; NaN are left out.

    ValueError if no score is left, or if one is infinite.
    """
    scores = as_scores(scores).detach()
    scores = scores[~scores.isnan()].to(exact_dtype(scores.device))
    n = scores.numel()
    if n == 0:
        raise ValueError("reference statistics need at least one score that is not NaN")
    low, high = float(scores.min()), float(scores.max())
    if math.isinf(low) or math.isinf(high):
        raise ValueError("reference statistics need finite scores, found an infinite one")
    if low == high:  # rounding in the mean would leave a tiny deviation, not the 0 it is
        return ReferenceStatistics(low, 0.0, n)
    return ReferenceStatistics(float(scores.mean()), float(scores.std(correction=0)), n)


def standardize(scores: Scores, mean: float, std: float) -> torch.Tensor:
    """`(scores - mean) / std` in units of the reference deviation; any shape, differentiable.

    NaN stays NaN. ValueError if `mean` is not finite, or `std` not above 0: scores that never
    varied on the reference set have no scale.
    """
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite, got {mean}")
    return (as_real(scores) - mean) / positive("std", std)
