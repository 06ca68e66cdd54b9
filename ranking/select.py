"""Which candidates to keep: sort, threshold, top k, top fraction, best."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, NamedTuple

import torch

from .checks import Scores, as_scores, whole

Order = Literal["best", "original"]


class Selection(NamedTuple):
    """Indices into the scores; together they hold each of 0..N-1 once.

    Both parts follow the `order` asked for: "best" is best first (NaN last), "original" ascending.
    """

    kept: torch.Tensor  # int64 [K]
    rejected: torch.Tensor  # int64 [N - K]


def sort(scores: Scores) -> torch.Tensor:
    """Indices int64 `[N]` of the scores, best first; ties keep their original order, NaN last."""
    scores = as_scores(scores)
    # Ascending, so that NaN ends up last. `0 - s` makes both zeros +0, and the plain NaN replaces
    # any with a sign: a radix sort on a GPU may order these by their bits.
    keys = torch.where(scores.isnan(), torch.nan, 0.0 - scores)
    return torch.argsort(keys, stable=True)


def threshold(scores: Scores, minimum: float, order: Order = "best") -> Selection:
    """Keep every score >= `minimum`. ValueError if `minimum` is NaN."""
    if math.isnan(minimum):
        raise ValueError("minimum must be a number, got nan")
    scores = as_scores(scores)
    return _keep_best(scores, int((scores >= minimum).sum()), order)


def top_k(scores: Scores, k: int, order: Order = "best") -> Selection:
    """Keep the best `k` >= 0, or all that have a score when there are fewer.

    Exactly k are kept: among scores tied at the cut, the ones that come first.
    """
    scores = as_scores(scores)
    return _keep_best(scores, min(whole("k", k, 0), _scored(scores)), order)


def top_fraction(scores: Scores, fraction: float, order: Order = "best") -> Selection:
    """Keep the best `fraction` in [0, 1] of the candidates that have a score, rounded up.

    So any fraction above 0 keeps at least one, and 1 keeps all but the NaN. Ties as in `top_k`.
    """
    scores = as_scores(scores)
    return _keep_best(scores, count_of(fraction, _scored(scores)), order)


def best(scores: Scores) -> Selection:
    """Keep the one best candidate, the first of ties; none if no candidate has a score."""
    return top_k(scores, 1)


def count_of(fraction: float, n: int) -> int:
    """`fraction` of `n`, rounded up. ValueError outside [0, 1]."""
    fraction = float(fraction)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    # As the decimal is written: in floats, 0.07 * 100 is a little more than 7.
    return math.ceil(Fraction(str(fraction)) * n)


def _scored(scores: torch.Tensor) -> int:
    return scores.numel() - int(scores.isnan().sum())


def _keep_best(scores: torch.Tensor, count: int, order: Order) -> Selection:
    if order not in ("best", "original"):
        raise ValueError(f'order must be "best" or "original", got {order!r}')
    ranked = sort(scores)
    kept, rejected = ranked[:count], ranked[count:]
    if order == "original":
        return Selection(kept.sort().values, rejected.sort().values)
    return Selection(kept, rejected)
