"""Where a score stands among others: mid-ranks, percentile, rank correlation."""

from __future__ import annotations

import math

import torch

from .checks import Scores, as_scores, exact_dtype


def percentile(scores: Scores, reference: Scores | None = None) -> torch.Tensor:
    """Share of `reference` below each score, ties counted half: `[N]` in 0..100.

    `reference` defaults to the scores themselves; its NaN are left out. A score above (below) all
    of the reference gets 100 (0), the only score of a set gets 50. NaN, or an empty reference,
    gives NaN. Equals `scipy.stats.percentileofscore(kind="mean")`.
    """
    scores = as_scores(scores).detach()
    reference = scores if reference is None else as_scores(reference).detach().to(scores.device)
    reference = reference[~reference.isnan()]
    twice = twice_mid_count(scores, reference.sort().values)
    # 0 / 0 is the NaN of an empty reference.
    percent = twice.to(exact_dtype(scores.device)) * 50 / reference.numel()
    return torch.where(scores.isnan(), torch.nan, percent)


def spearman(a: Scores, b: Scores) -> float:
    """Spearman's rank correlation in [-1, 1] of two score tensors `[N]`, ties sharing ranks.

    Candidates with a NaN on either side are left out. NaN if fewer than two remain or one side is
    constant: then there is no order to compare.
    """
    a, b = as_scores(a).detach(), as_scores(b).detach()
    if a.shape != b.shape:
        raise ValueError(f"both must score the same candidates, got {len(a)} and {len(b)} scores")
    b = b.to(a.device)
    both = ~(a.isnan() | b.isnan())
    x, y = (_centred_ranks(side[both]) for side in (a, b))
    variances = float(x.square().sum()) * float(y.square().sum())
    if variances == 0:
        return math.nan
    return max(-1.0, min(1.0, float((x * y).sum()) / math.sqrt(variances)))


def twice_mid_count(scores: torch.Tensor, ascending: torch.Tensor) -> torch.Tensor:
    """(how many of `ascending` are below) + (how many are not above), int64 `[N]`.

    Twice the mid-rank, so that ties stay whole numbers. `ascending` is sorted without NaN; the
    value at a NaN score means nothing.
    """
    dtype = torch.promote_types(scores.dtype, ascending.dtype)
    scores, ascending = scores.to(dtype).contiguous(), ascending.to(dtype)
    below = torch.searchsorted(ascending, scores)
    return below + torch.searchsorted(ascending, scores, right=True)


def _centred_ranks(scores: torch.Tensor) -> torch.Tensor:
    # Ranks average N / 2, so twice the mid-count averages N: centred without rounding.
    twice = twice_mid_count(scores, scores.sort().values)
    return (twice - scores.numel()).to(exact_dtype(scores.device))
