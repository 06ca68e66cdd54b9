"""One order from several scorers, by rank: their scales need not agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from .checks import Scores, as_scores, exact_dtype
from .ranks import twice_mid_count

Method = Literal["mean_rank", "worst_rank", "rrf"]


def aggregate(
    scores: torch.Tensor | Sequence[Scores],
    method: Method = "mean_rank",
    weights: Scores | None = None,
) -> torch.Tensor:
    """Combine the scores `[S, N]` of S scorers into one score per candidate, `[N]`.

    - "mean_rank": weighted mean of the candidate's percentiles, 0..100 (the order of Borda's count).
    - "worst_rank": lowest of its percentiles, 0..100: good only if every scorer agrees. No weights.
    - "rrf": sum of weight / (60 + rank), rank 1 the best (reciprocal rank fusion, Cormack et al.,
      SIGIR 2009): a top place with one scorer outweighs a middling place with all.

    Ties share their mean rank. A NaN is last for that scorer, shared with its other NaN, below -inf;
    a candidate that no scorer scored gets NaN. Weights are one per scorer, finite, not negative
    and not all 0; a scorer of weight 0 is left out.
    """
    if method not in ("mean_rank", "worst_rank", "rrf"):
        raise ValueError(f'method must be "mean_rank", "worst_rank" or "rrf", got {method!r}')
    if method == "worst_rank" and weights is not None:
        raise ValueError("worst_rank takes no weights: a minimum has none")
    rows = _rows(scores)
    w = _weights(weights, len(rows))
    used = [(row, weight) for row, weight in zip(rows, w, strict=True) if weight > 0]
    unscored = torch.stack([row.isnan() for row, _ in used]).all(0)
    # Scorer by scorer: a vectorised sum may round equal candidates differently.
    if method == "rrf":
        result = sum(weight / (60 + _rank(row)) for row, weight in used)
    elif method == "worst_rank":
        result = torch.stack([_percent(row) for row, _ in used]).amin(0)
    else:
        result = sum(weight * _percent(row) for row, weight in used) / sum(w)
    return torch.where(unscored, torch.nan, result)


def _rank(scores: torch.Tensor) -> torch.Tensor:
    """1 for the best to N, ties sharing their mean rank, NaN below all: `[N]`"""
    missing = scores.isnan()
    absent = missing.sum()
    twice = twice_mid_count(scores, scores[~missing].sort().values) + 2 * absent
    twice = torch.where(missing, absent, twice).to(exact_dtype(scores.device))
    return len(scores) + 0.5 - twice / 2


def _percent(scores: torch.Tensor) -> torch.Tensor:
    """The percentile with NaN below all: `[N]` in 0..100"""
    n = len(scores)
    return (n + 0.5 - _rank(scores)) * 100 / n


def _rows(scores: torch.Tensor | Sequence[Scores]) -> list[torch.Tensor]:
    rows = [as_scores(row).detach() for row in scores]
    if not rows:
        raise ValueError("aggregate needs the scores of at least one scorer")
    if len({row.numel() for row in rows}) > 1:
        sizes = [row.numel() for row in rows]
        raise ValueError(f"every scorer must score the same candidates, got {sizes} scores")
    return [row.to(rows[0].device) for row in rows]


def _weights(weights: Scores | None, count: int) -> list[float]:
    w = [1.0] * count if weights is None else as_scores(weights).tolist()
    if len(w) != count:
        raise ValueError(f"weights must be one per scorer: {count}, got {len(w)}")
    if not all(0 <= weight < math.inf for weight in w) or not any(w):
        raise ValueError(f"weights must be finite, not negative and not all 0, got {w}")
    return w
