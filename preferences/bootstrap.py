"""Intervals by bootstrap: for comparisons, which share images, and for things counted one by one.

Two comparisons of one image are not independent: what a scorer has wrong about it, it has wrong
twice. Resampling comparisons ignores that, and gives intervals that are too narrow; resampling
images counts a comparison's own noise once for each of its two images, and gives them too wide. To
first order the variance that is right for pairs (Fafchamps and Gubert, "The formation of risk
sharing networks", 2007; Aronow, Samii and Assenova, "Cluster-robust variance estimation for dyadic
data", 2015) is the image one, less the comparison one. So both are drawn, and the deviations of the
comparison bootstrap are stretched by the ratio; never shrunk.

Weights are drawn rather than indices (exponential ones: Rubin, "The Bayesian bootstrap", 1981), so
no draw is degenerate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from .metrics import pair_metrics, verdicts

ROUNDS = 1000
LEVEL = 0.95
STREAM = 0x626F6F74  # no stream that the data may have been simulated with from the same seed
_AT_ONCE = 4_000_000  # weights in memory

Interval = tuple[float, float]
Statistics = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # weights [R, P] to values [R]

# What lies beyond is no value of the metric.
BOUNDS = {"nll": (0, math.inf), "r2": (-math.inf, 1), "kappa": (-1, 1)}


def pair_intervals(
    difference: ArrayLike,
    p: ArrayLike,
    pairs: ArrayLike,
    *,
    of: ArrayLike | None = None,
    tau: float | None = 1.0,
    weights: ArrayLike | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """An interval for each of `pair_metrics`.

    Args:
        difference: [T], p: [T].
        pairs: [P, 2], the indices of the images.
        of: [T] which of the P comparisons each is of, where one is judged several times, which makes
            nothing surer, or never; by default each once, in order.
        weights: [P], by default all 1.
    """
    of = np.arange(len(np.asarray(pairs))) if of is None else np.asarray(of)
    judged, first, place = np.unique(of, return_index=True, return_inverse=True)
    pairs = np.asarray(pairs)[judged]
    weights = None if weights is None else np.asarray(weights)[judged]

    def statistics(rows: np.ndarray) -> Mapping[str, np.ndarray]:
        return pair_metrics(difference, p, tau=tau, weights=rows[:, place])

    decided = verdicts(difference, p, tau).decided[first]
    how = {"rounds": rounds, "seed": seed, "level": level}
    return bootstrap(statistics, pairs, weights=weights, shares={"accuracy": decided}, **how)


def bootstrap(
    statistics: Statistics,
    pairs: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    shares: Mapping[str, ArrayLike] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Intervals of statistics of P comparisons that share images, seeded.

    Args:
        statistics: of weights [R, P], each [R].
        pairs: [P, 2] indices of images.
        weights: [P], by default all 1.
        shares: the statistics that are shares, and which comparisons they are of, [P] bool. Near 0
            and 1 a bootstrap says too little: they get Wilson's interval, at the number of
            independent comparisons that the bootstrap says these are worth.

    Returns:
        (low, high), around the statistic; NaN where it cannot be told: fewer than two comparisons,
        or a statistic that is NaN.
    """
    images, place = np.unique(np.asarray(pairs), return_inverse=True)
    place = place.reshape(-1, 2)
    base = np.ones(len(place)) if weights is None else np.asarray(weights, np.float64)
    best = {name: float(value[0]) for name, value in statistics(base[None]).items()}
    if len(place) < 2:
        return {name: (math.nan, math.nan) for name in best}
    rng = np.random.default_rng((STREAM, seed))
    single = _draws(lambda r: rng.exponential(size=(r, len(place))), statistics, base, rounds)

    def by_image(r: int) -> np.ndarray:
        of_image = rng.exponential(size=(r, len(images)))
        return (of_image[:, place[:, 0]] + of_image[:, place[:, 1]]) / 2

    shared = _draws(by_image, statistics, base, rounds)
    found = {}
    for name, value in best.items():
        stretch = _stretch(single[name], shared[name])
        if shares and name in shares:
            kept = base[np.asarray(shares[name])]
            n = kept.sum() ** 2 / (kept**2).sum() if kept.any() else 0
            found[name] = wilson(value, n / stretch**2, level)
        else:
            found[name] = _around(value, single[name], stretch, level, BOUNDS.get(name, (0, 1)))
    return found


def wilson(share: float, n: float, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share of n independent ones: has a width at 0 and at 1 too."""
    if math.isnan(share) or n <= 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Where the share is 0 or 1 rounding must not put it outside.
    return float(max(0.0, min(share, middle - half))), float(min(1.0, max(share, middle + half)))


def bootstrap_rows(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    n: int,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Percentile intervals of statistics of n images, resampled with replacement: of indices [n]."""
    rng = np.random.default_rng((STREAM, seed))
    drawn = [statistics(rng.integers(n, size=n)) for _ in range(rounds)]
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {name: _quantiles([draw[name] for draw in drawn], ends) for name in drawn[0]}


def _draws(
    draw: Callable[[int], np.ndarray], statistics: Statistics, base: np.ndarray, rounds: int
) -> dict[str, np.ndarray]:
    """The statistics [rounds] under drawn weights, with bounded memory."""
    step = max(1, _AT_ONCE // len(base))
    parts = []
    for start in range(0, rounds, step):
        parts.append(statistics(draw(min(step, rounds - start)) * base))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _stretch(single: np.ndarray, shared: np.ndarray) -> float:
    """How much wider than for independent comparisons an interval is, 1 or more."""
    if not np.isfinite(single).any():
        return 1.0
    own = np.nanvar(single)
    if own <= (1e-12 * max(1.0, abs(np.nanmean(single)))) ** 2:  # rounding, of what is constant
        return 1.0
    # A mean of two weights varies by a quarter of what a sum does, which is what is meant.
    return math.sqrt(max(1.0, 4 * np.nanvar(shared) / own - 1))


def _around(
    value: float, drawn: np.ndarray, stretch: float, level: float, bounds: Interval
) -> Interval:
    if math.isnan(value) or not np.isfinite(drawn).any():
        return math.nan, math.nan
    # Around their own median: noise moves a calibration error up, an interval must not lie above it.
    low, high = _quantiles(drawn - np.nanmedian(drawn), [(1 - level) / 2, (1 + level) / 2])
    low, high = max(bounds[0], value + stretch * low), min(bounds[1], value + stretch * high)
    return float(low), float(high)


def _quantiles(values: ArrayLike, ends: list[float]) -> Interval:
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, ends)
    return float(low), float(high)
