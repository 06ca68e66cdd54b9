"""A scorer's numbers against comparisons or ratings: every metric with its interval, in one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import LEVEL, ROUNDS, Interval, pair_intervals
from .comparisons import Comparisons
from .metrics import (
    Bin,
    calibration_curve,
    importance_weights,
    pair_metrics,
    per_distance,
    verdicts,
)
from .ratings import Ratings, rating_metrics
from .strengths import ranked_by_comparisons

POPULATION = 1_000_000  # pairs of images whose distances are looked at, when there are more


class Measured(NamedTuple):
    """A metric and its interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairEvaluation:
    """Of a scorer on P comparisons whose images all have a score.

    Attributes:
        difference, p, distance: [P], the last None without embeddings.
        tau: see `pair_metrics`.
        left_out: comparisons with an image that has no score.
        metrics: those of `pair_metrics`, and spearman and kendall against the ranking that the
            comparisons themselves make of `ranked` images.
        weighted: with embeddings, as if the pairs had not been chosen: see `importance_weights`.
        by_distance: with embeddings, see `per_distance`.
        calibration: see `calibration_curve`; empty without a tau.
    """

    difference: np.ndarray
    p: np.ndarray
    distance: np.ndarray | None
    tau: float | None
    images: int
    ranked: int
    left_out: int
    metrics: Mapping[str, Measured]
    weighted: Mapping[str, Measured] = field(default_factory=dict)
    by_distance: list[dict[str, float]] = field(default_factory=list)
    calibration: list[Bin] = field(default_factory=list)

    @property
    def ties(self) -> int:
        """Of the voter."""
        return int((self.p == 0.5).sum())


def differences(
    scores: Mapping[Path, float], comparisons: Comparisons
) -> tuple[Comparisons, np.ndarray]:
    """The comparisons whose images both have a score, and left minus right [P] of each."""
    values = np.array([scores.get(image, math.nan) for image in comparisons.images], np.float64)
    pairs = comparisons.pairs.numpy()
    difference = values[pairs[:, 0]] - values[pairs[:, 1]]
    known = np.isfinite(difference)
    return comparisons.take(comparisons.pairs.new_tensor(np.flatnonzero(known))), difference[known]


def evaluate_comparisons(
    scores: Mapping[Path, float],
    comparisons: Comparisons,
    *,
    tau: float | None = 1.0,
    embeddings: Mapping[Path, ArrayLike] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> PairEvaluation:
    """Every metric of a scorer's numbers against comparisons.

    Args:
        scores: by image; one that is NaN or missing has none.
        tau: 1 where the sigmoid of a difference is a win probability; None where that is unknown.
        embeddings: [D] by image, of what the pictures show: distances are 1 - cosine.

    Raises:
        ValueError: no comparison is left.
    """
    how: dict[str, Any] = {"rounds": rounds, "seed": seed, "level": level}
    kept, d = differences(scores, comparisons)
    if not len(kept):
        raise ValueError(f"of {len(comparisons)} comparisons, none has a score for both images")
    p, pairs = kept.p.numpy(), kept.pairs.numpy()
    metrics = _with_intervals(
        pair_metrics(d, p, tau=tau), pair_intervals(d, p, pairs, tau=tau, **how)
    )
    values = [scores[image] for image in kept.images]
    *ranking, ranked = ranked_by_comparisons(values, pairs, p, **how)
    judged = verdicts(d, p, tau)
    distance, weighted, by_distance = None, {}, []
    if embeddings is not None:
        x = np.stack([np.asarray(embeddings[image], np.float64) for image in kept.images])
        distance, population = distances(x, pairs, seed=seed)
        w = importance_weights(distance, population)
        intervals = pair_intervals(d, p, pairs, tau=tau, weights=w, **how)
        weighted = _with_intervals(pair_metrics(d, p, tau=tau, weights=w), intervals)
        by_distance = per_distance(d, p, distance, tau=tau)
    return PairEvaluation(
        difference=d,
        p=p,
        distance=distance,
        tau=tau,
        images=len(kept.images),
        ranked=ranked,
        left_out=len(comparisons) - len(kept),
        metrics=metrics | _with_intervals(*ranking),
        weighted=weighted,
        by_distance=by_distance,
        calibration=[] if tau is None else calibration_curve(judged.confidence, judged.right),
    )


def distances(
    embeddings: ArrayLike, pairs: ArrayLike, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """1 - cosine of P compared pairs, and of all pairs of the N images, or a million drawn ones.

    Args:
        embeddings: [N, D]; pairs: [P, 2] indices.
    """
    x, pairs = np.asarray(embeddings, np.float64), np.asarray(pairs)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    n = len(x)
    if n * (n - 1) // 2 <= POPULATION:
        everything = np.stack(np.triu_indices(n, 1), 1)
    else:
        rng = np.random.default_rng(seed)
        first, step = rng.integers(n, size=POPULATION), rng.integers(1, n, size=POPULATION)
        everything = np.stack([first, (first + step) % n], 1)
    return _cosine_distance(x, pairs), _cosine_distance(x, everything)


def card_metrics(
    difference: ArrayLike,
    p: ArrayLike,
    pairs: ArrayLike,
    *,
    of: ArrayLike | None = None,
    tau: float | None = 1.0,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """What the card of a trained scorer says of comparisons, for JSON: `pair_metrics` by name, how many
    comparisons, how many of them are decided, and the metrics' intervals.

    What cannot be told is left out. Arguments as `pair_intervals` takes them.
    """
    found = {name: float(value) for name, value in pair_metrics(difference, p, tau=tau).items()}
    told = {name: value for name, value in found.items() if math.isfinite(value)}
    once = slice(None) if of is None else np.unique(np.asarray(of), return_index=True)[1]
    decided = verdicts(difference, p, tau).decided[once]
    told |= {"comparisons": len(decided), "decided": int(decided.sum())}
    intervals = pair_intervals(difference, p, pairs, of=of, tau=tau, rounds=rounds)
    known = {name: each for name, each in intervals.items() if np.isfinite(each).all()}
    return told | {"intervals": {name: list(known[name]) for name in found if name in known}}


@dataclass(frozen=True)
class RatingEvaluation:
    """Of a scorer on N rated images that have a score.

    Attributes:
        scores, values: [N], the latter the ratings.
        curve: see `fit_logistic`; None where none can be fitted.
        left_out: rated images without a score.
        metrics: those of `rating_metrics`.
    """

    scores: np.ndarray
    values: np.ndarray
    curve: tuple[float, float, float, float] | None
    left_out: int
    metrics: Mapping[str, Measured]


def evaluate_ratings(
    scores: Mapping[Path, float],
    ratings: Ratings,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> RatingEvaluation:
    """Every metric of a scorer's numbers against mean opinion scores. ValueError if none is left."""
    own = np.array([scores.get(image, math.nan) for image in ratings.images], np.float64)
    known = np.isfinite(own)
    if not known.any():
        raise ValueError(f"of {len(own)} rated images, none has a score")
    x, y = own[known], ratings.values[known]
    values, intervals, curve = rating_metrics(x, y, rounds=rounds, seed=seed, level=level)
    left_out = int((~known).sum())
    return RatingEvaluation(x, y, curve, left_out, _with_intervals(values, intervals))


def _with_intervals(
    values: Mapping[str, float], intervals: Mapping[str, Interval]
) -> dict[str, Measured]:
    return {name: Measured(float(value), *intervals[name]) for name, value in values.items()}


def _cosine_distance(unit: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Of rows of length 1, in blocks: a million pairs of 1,152 numbers would be 18 GB."""
    blocks = [pairs[i : i + 4096] for i in range(0, len(pairs), 4096)]
    cosines = [np.einsum("pd,pd->p", unit[b[:, 0]], unit[b[:, 1]]) for b in blocks]
    return 1 - np.concatenate(cosines) if cosines else np.zeros(0)
