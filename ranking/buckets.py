"""Scores into n quality buckets, 0 worst to n - 1 best, of equal width or equal count.

Method A of the JoyQuality README (https://github.com/fpgaminer/joyquality), which describes the
first and promises the effect of the second.
"""

from __future__ import annotations

from typing import Literal

import torch

from .checks import Scores, as_scores, exact_dtype, whole
from .ranks import twice_mid_count

Method = Literal["equal_width", "quantile"]


def buckets(scores: Scores, n: int, method: Method = "equal_width") -> torch.Tensor:
    """Label each score with its bucket among these scores: int64 `[N]` in 0..n-1, NaN -> -1.

    Shorthand for `assign_buckets(scores, bucket_edges(scores, n, method))`, defined even where no
    score is finite.
    """
    scores = as_scores(scores).detach()
    if not scores.isfinite().any():
        _check(n, method)
        return assign_buckets(scores, torch.zeros(n - 1))  # infinities pass any edge
    return assign_buckets(scores, bucket_edges(scores, n, method))


def bucket_edges(scores: Scores, n: int, method: Method = "equal_width") -> torch.Tensor:
    """The lowest score that enters each bucket but the first: float64 `[n - 1]`, ascending.

    "equal_width" divides the range from the lowest to the highest score evenly; a bucket may stay
    empty. "quantile" puts equally many scores in each bucket, as nearly as whole numbers and ties
    allow: the bucket is `floor(n * percentile / 100)`, see `percentile`.
    Only finite scores count (ValueError if there is none). Where all are equal there is nothing to
    divide: they get the middle bucket `n // 2`, what is above the last, what is below the first.
    """
    _check(n, method)
    scores = as_scores(scores).detach()
    scores = scores[scores.isfinite()].to(exact_dtype(scores.device))
    if not scores.numel():
        raise ValueError("bucket edges need at least one finite score")
    low, high = scores.min(), scores.max()
    if method == "quantile" or low == high:
        return _quantile_edges(scores, n)
    j = torch.arange(1, n, device=scores.device, dtype=scores.dtype)
    # Rounding must not push an edge onto the lowest score or beyond the highest.
    return (low + (high - low) * j / n).clamp(_next_above(low), high)


def assign_buckets(scores: Scores, edges: Scores) -> torch.Tensor:
    """Put scores, new or old, between existing edges: int64 `[N]` in 0..len(edges), NaN -> -1.

    The label is the number of edges not above the score, so -inf gets 0 and inf the last bucket.
    ValueError if the edges descend or are NaN.
    """
    scores = as_scores(scores).detach()
    dtype = exact_dtype(scores.device)
    edges = as_scores(edges).detach().to(scores.device, dtype)
    if edges.isnan().any() or (edges[1:] < edges[:-1]).any():
        raise ValueError("bucket edges must ascend and hold no NaN")
    labels = torch.bucketize(scores.to(dtype), edges, right=True)
    return torch.where(scores.isnan(), -1, labels)


def _quantile_edges(scores: torch.Tensor, n: int) -> torch.Tensor:
    """The lowest number whose percentile among `scores` is at least 100 j / n, for j = 1..n-1."""
    ascending, total = scores.sort().values, scores.numel()
    j = torch.arange(1, n, device=scores.device)
    # The first value v with (count of scores <= v) * n >= total * j: no lower one can be the edge.
    value = ascending[(total * j + n - 1) // n - 1]
    # v itself reaches the share only if its ties, counted half, do; else anything above v does.
    reaches = twice_mid_count(value, ascending) * n >= 2 * total * j
    return torch.where(reaches, value, _next_above(value))


def _next_above(value: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def _check(n: int, method: str) -> None:
    whole("n", n, 1)
    if method not in ("equal_width", "quantile"):
        raise ValueError(f'method must be "equal_width" or "quantile", got {method!r}')
