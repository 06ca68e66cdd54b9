"""How well a scorer's differences predict comparisons: pure functions of float64 arrays.

Everything takes P comparisons as `difference[P]`, the left score minus the right one, and `p[P]`,
the probability that the left one is preferred (of a vote 1, 0.5 for a tie, or 0). The scorer's own
win probability is q = sigmoid(difference / tau).

Ties, stated once: a tie of the voter (p = 0.5) has no right side, so accuracy, AUC, ECE and AURC
are over the decided comparisons only; NLL and Brier score q against p on all of them. A tie of the
scorer (difference 0) on a decided comparison is half right: what a coin would do. The side of a
probability that is no vote (p = 0.7) is the likelier one.

The metrics are those of JoyQuality's training (https://github.com/fpgaminer/joyquality), where ties
were an error, a tie of the scorer counted as right, and AUC was always NaN, since every label was 1.
Here AUC sees each comparison both ways round.

scikit-learn has some of them, for one set of weights at a time. These take R sets at once, which is
what makes intervals by bootstrap cheap; the tests hold them to scikit-learn's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

ECE_BINS = 15  # of equal width over [0, 1], as upstream; confidences fill the upper half
DISTANCE_BINS = 10  # with equally many comparisons each
WEIGHT_BINS = 20  # of equal width over the distances of all pairs of images


class Verdicts(NamedTuple):
    """The decided comparisons D of P, as a scorer judges them."""

    decided: np.ndarray  # [P] bool
    margin: np.ndarray  # [D] difference towards the preferred side: above 0 where right
    right: np.ndarray  # [D] 1, 0.5 or 0
    confidence: np.ndarray  # [D] max(q, 1 - q), in [0.5, 1]


def verdicts(difference: ArrayLike, p: ArrayLike, tau: float | None = 1.0) -> Verdicts:
    """Where the scorer is right, and how sure it is (NaN without a tau).

    Raises:
        ValueError: the lengths differ, a difference is not finite, p is outside [0, 1], or tau is
            not above 0.
    """
    difference, p = _checked(difference, p, tau)
    decided = p != 0.5
    d = difference[decided]
    margin = np.where(p[decided] > 0.5, d, -d)
    right = (np.sign(margin) + 1) / 2
    confidence = np.full(len(d), np.nan) if tau is None else _sigmoid(np.abs(d) / tau)
    return Verdicts(decided, margin, right, confidence)


def pair_metrics(
    difference: ArrayLike,
    p: ArrayLike,
    *,
    tau: float | None = 1.0,
    weights: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of P comparisons, for one or for R sets of weights.

    Args:
        tau: the score difference that makes the odds e to 1; None where nothing is known of it:
            then NLL, R2, Brier and ECE are NaN, and the others need none.
        weights: [P] or [R, P], 0 or more; by default all 1.

    Returns:
        Each [R], or a number for one set. NaN where nothing is decided.
        accuracy, auc (0 to 1, higher is better); nll (nats), brier, ece, aurc (lower is better);
        r2: McFadden's, 1 - nll / ln 2, above 0 where better than a coin.
    """
    difference, p = _checked(difference, p, tau)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    if w.ndim not in (1, 2) or w.shape[-1] != len(p) or not (w >= 0).all():
        raise ValueError(f"weights must be [{len(p)}] or [R, {len(p)}] and not below 0")
    rows = np.atleast_2d(w)  # [R, P]
    judged = verdicts(difference, p, tau)
    own = rows[:, judged.decided]  # [R, D]
    nll, brier = np.full((2, len(rows)), np.nan)
    if tau is not None:
        nll = _mean(nll_of(difference / tau, p), rows)
        brier = _mean((_sigmoid(difference / tau) - p) ** 2, rows)
    found = {
        "accuracy": _mean(judged.right, own),
        "nll": nll,
        "r2": 1 - nll / math.log(2),
        "auc": auc(judged.margin, own),
        "brier": brier,
        "ece": ece(judged.confidence, judged.right, own),
        "aurc": aurc(np.abs(judged.margin), judged.right, own),
    }
    return {name: value[0] if w.ndim == 1 else value for name, value in found.items()}


def nll_of(logit: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Cross-entropy [P] in nats of sigmoid(logit) against p, without overflow."""
    return p * np.logaddexp(0, -logit) + (1 - p) * np.logaddexp(0, logit)


def auc(margin: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [R] of comparisons seen both ways round: margins m and -m.

    That is the share of (a, b) with m_a + m_b > 0, half of those with 0: how often a difference
    towards the preferred side lies above one that is not.
    """
    order = np.argsort(margin, kind="stable")
    m, w = margin[order], weights[:, order]
    below = np.zeros((len(w), len(m) + 1))
    np.cumsum(w, axis=1, out=below[:, 1:])
    total = below[:, -1]
    # Of all b, the weight with m_b < -m_a, and with m_b <= -m_a.
    less, not_above = (below[:, np.searchsorted(m, -m, side)] for side in ("left", "right"))
    above = total[:, None] - (less + not_above) / 2
    return _ratio((w * above).sum(1), total**2)


def ece(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error [R]: the mean gap of confidence and accuracy over 15 bins."""
    if np.isnan(confidence).any():
        return np.full(len(weights), np.nan)
    bins = np.eye(ECE_BINS)[_bin(confidence)]  # [D, 15]
    gaps = np.abs((weights * (right - confidence)) @ bins).sum(1)
    return _ratio(gaps, weights.sum(1))


def aurc(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve [R]: the mean error among the surest, over all coverages.

    Comparisons of equal confidence enter together, since no threshold parts them.
    """
    covered, risk = _risk(confidence, right, weights)
    return _ratio((covered * np.nan_to_num(risk)).sum(1), weights.sum(1))


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and error rate, both [G], of the surest comparisons: one point a threshold."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    covered, risk = _risk(confidence, right, np.ones((1, len(right))))
    return covered[0].cumsum() / max(len(right), 1), risk[0]


class Bin(NamedTuple):
    """The comparisons between two values of something."""

    low: float
    high: float
    n: int
    mean: float  # of that something
    accuracy: float


def calibration_curve(confidence: ArrayLike, right: ArrayLike) -> list[Bin]:
    """Confidence against accuracy in the bins of ECE; empty ones left out."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    return _binned(confidence, right, _bin(confidence), np.linspace(0, 1, ECE_BINS + 1))


def accuracy_by(value: ArrayLike, right: ArrayLike, bins: int = DISTANCE_BINS) -> list[Bin]:
    """Accuracy over something known of each decided comparison, in bins of equal count.

    Equal values share a bin, so there may be fewer bins.
    """
    value, right = np.asarray(value, float), np.asarray(right, float)
    edges = quantile_edges(value, bins)
    return _binned(value, right, _place(value, edges), edges)


def quantile_edges(values: np.ndarray, bins: int = DISTANCE_BINS) -> np.ndarray:
    """Ascending edges of at most `bins` bins that hold equally many of the values."""
    if not len(values):
        return np.zeros(0)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def per_distance(
    difference: ArrayLike,
    p: ArrayLike,
    distance: ArrayLike,
    *,
    tau: float | None = 1.0,
    bins: int = DISTANCE_BINS,
) -> list[dict[str, float]]:
    """`pair_metrics` in bins of equal count of the images' distance, with low, high and n."""
    (difference, p), distance = _checked(difference, p, tau), np.asarray(distance, float)
    edges = quantile_edges(distance, bins)
    place = _place(distance, edges)
    found = []
    for b in range(len(edges) - 1):
        inside = place == b
        if inside.any():
            metrics = pair_metrics(difference[inside], p[inside], tau=tau)
            edge = {"low": edges[b], "high": edges[b + 1], "n": int(inside.sum())}
            found.append({**edge, **{name: float(v) for name, v in metrics.items()}})
    return found


def importance_weights(
    distance: ArrayLike, population: ArrayLike, bins: int = WEIGHT_BINS
) -> np.ndarray:
    """Weights [P], mean 1, that give compared pairs the distances of the population's pairs [M].

    Comparisons are often chosen near each other; weighted, their metrics are those of pairs as they
    come. As upstream: histograms of `bins` equal widths over the population's range, their ratio.
    """
    distance, population = np.asarray(distance, float), np.asarray(population, float)
    if not len(population):
        raise ValueError("no distances of the population to weight by")
    edges = np.linspace(population.min(), population.max(), bins + 1)
    own, theirs = (np.bincount(_place(v, edges), minlength=bins) for v in (distance, population))
    ratio = theirs / np.maximum(own, 1)
    weights = ratio[_place(distance, edges)]
    if len(weights) and not weights.any():
        raise ValueError("no pair of the population is as far apart as any compared pair")
    return weights * len(weights) / weights.sum() if len(weights) else weights


def _checked(
    difference: ArrayLike, p: ArrayLike, tau: float | None
) -> tuple[np.ndarray, np.ndarray]:
    difference, p = np.asarray(difference, np.float64), np.asarray(p, np.float64)
    if difference.ndim != 1 or difference.shape != p.shape:
        raise ValueError(f"difference and p must be [P], got {difference.shape} and {p.shape}")
    if not np.isfinite(difference).all():
        raise ValueError("differences must be finite: leave out what could not be scored")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p must be in [0, 1]")
    if tau is not None and not (0 < tau < math.inf):
        raise ValueError(f"tau must be a finite number above 0, got {tau}")
    return difference, p


def _risk(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the G groups of equal confidence, surest first: weight, and error so far, both [R, G]."""
    if not len(confidence):
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    order = np.argsort(-confidence, kind="stable")
    c, w = confidence[order], weights[:, order]
    starts = np.flatnonzero(np.r_[True, c[1:] != c[:-1]])
    covered = np.add.reduceat(w, starts, axis=1)
    wrong = np.add.reduceat(w * (1 - right[order]), starts, axis=1)
    return covered, _ratio(wrong.cumsum(1), covered.cumsum(1))


def _binned(values: np.ndarray, right: np.ndarray, place: np.ndarray, edges: np.ndarray):
    found = []
    for b in np.unique(place):
        inside = place == b
        n, mean, accuracy = inside.sum(), values[inside].mean(), right[inside].mean()
        found.append(Bin(float(edges[b]), float(edges[b + 1]), int(n), float(mean), accuracy))
    return found


def _bin(confidence: np.ndarray) -> np.ndarray:
    return _place(confidence, np.linspace(0, 1, ECE_BINS + 1))


def _place(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Which bin each value is in; the last holds its upper edge, and what lies outside is clipped."""
    return np.clip(np.searchsorted(edges, values, "right") - 1, 0, max(len(edges) - 2, 0))


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ values, weights.sum(1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
