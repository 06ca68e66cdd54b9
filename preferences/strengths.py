"""A ranking of images out of comparisons alone, to hold a scorer's ranking against."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from ..scorers.messages import needs
from .bootstrap import LEVEL, ROUNDS, Interval, bootstrap_rows
from .metrics import nll_of

PRIOR = 0.25  # precision of a strength: keeps one that always wins finite
FEWEST = 3  # images that make a ranking


def scipy(part: str) -> ModuleType:
    """scipy.`part`, which not everybody has. ImportError says what to install."""
    try:
        return import_module(f"scipy.{part}")
    except ImportError:
        raise needs("these metrics need scipy", "scipy", "train") from None


def strengths(pairs: ArrayLike, p: ArrayLike, n: int) -> np.ndarray:
    """Bradley-Terry strengths [n] of images by their comparisons, mean 0: the most probable ones.

    Args:
        pairs: [P, 2] indices below n; p: [P] probability that the first is preferred.

    A normal prior of deviation 2 (in nats of the odds) keeps them finite and unique. Images that no
    chain of comparisons connects cannot be ranked against each other: see `connected`.
    """
    minimize = scipy("optimize").minimize
    pairs, p = np.asarray(pairs, np.int64).reshape(-1, 2), np.asarray(p, np.float64)

    def loss(s: np.ndarray) -> tuple[float, np.ndarray]:
        logit = s[pairs[:, 0]] - s[pairs[:, 1]]
        error = np.exp(-np.logaddexp(0, -logit)) - p
        slope = np.bincount(pairs[:, 0], error, n) - np.bincount(pairs[:, 1], error, n)
        return nll_of(logit, p).sum() + PRIOR / 2 * (s @ s), slope + PRIOR * s

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    found = minimize(loss, np.zeros(n), jac=True, method="L-BFGS-B", options=options).x
    return found - found.mean() if n else found


def connected(pairs: ArrayLike, n: int) -> np.ndarray:
    """Indices of the largest set of images that comparisons connect."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    graph = scipy("sparse").coo_array(
        (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n)
    )
    _, part = scipy("sparse.csgraph").connected_components(graph, directed=False)
    return np.flatnonzero(part == np.bincount(part).argmax()) if n else np.zeros(0, np.int64)


def ranking_metrics(scores: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b [-1, 1] of two rankings; NaN where one is constant."""
    stats = scipy("stats")
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ValueError(f"both must rank the same images, got {scores.shape} and {truth.shape}")
    if len(scores) < 2 or not np.ptp(scores) or not np.ptp(truth):
        return {"spearman": np.nan, "kendall": np.nan}
    rho = np.corrcoef(stats.rankdata(scores), stats.rankdata(truth))[0, 1]
    return {"spearman": float(rho), "kendall": float(stats.kendalltau(scores, truth).statistic)}


def ranked_by_comparisons(
    scores: ArrayLike,
    pairs: ArrayLike,
    p: ArrayLike,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[dict[str, float], dict[str, Interval], int]:
    """`ranking_metrics` of scores [n] against the strengths of what the comparisons connect.

    Returns:
        The metrics, their intervals (images resampled; the strengths as they are, so without the
        votes' own noise, which also keeps a perfect scorer below 1), and how many images that are.
    """
    scores = np.asarray(scores, np.float64)
    within = connected(pairs, len(scores))
    if len(within) < FEWEST:
        nan = dict.fromkeys(("spearman", "kendall"), np.nan)
        return nan, dict.fromkeys(nan, (np.nan, np.nan)), len(within)
    own, truth = scores[within], strengths(pairs, p, len(scores))[within]

    def statistics(rows: np.ndarray) -> Mapping[str, float]:
        return ranking_metrics(own[rows], truth[rows])

    how = {"rounds": rounds, "seed": seed, "level": level}
    return ranking_metrics(own, truth), bootstrap_rows(statistics, len(own), **how), len(within)
