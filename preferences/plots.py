"""What an evaluation shows, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ..report.plot import plot
from .bootstrap import wilson
from .metrics import DISTANCE_BINS, Bin, accuracy_by, risk_coverage, verdicts
from .ratings import logistic

MOST = 20_000  # dots of a scatter: more would be one blot
FEWEST = 20  # comparisons of a point: fewer say nothing
RIGHT = "how often it is right, 95 % intervals"


def pair_plots(
    difference: ArrayLike,
    p: ArrayLike,
    *,
    tau: float | None = 1.0,
    distance: ArrayLike | None = None,
    name: str = "",
) -> dict[str, Image.Image]:
    """Pictures by file name, without suffix: of calibration, accuracy and risk over P comparisons.

    Nothing is drawn of what is not there: no calibration without a tau, no accuracy by distance
    without distances, nothing at all of fewer than 20 decided comparisons.
    """
    judged = verdicts(difference, p, tau)
    if len(judged.right) < FEWEST:
        return {}
    margin = np.abs(judged.margin)
    found = {
        "accuracy_by_difference": accuracy_plot(margin, judged.right, "score difference", name),
        "risk_coverage": risk_plot(margin, judged.right, name),
    }
    if tau is not None:
        found["calibration"] = calibration_plot(judged.confidence, judged.right, name)
    if distance is not None:
        distance = np.asarray(distance)[judged.decided]
        what = "distance of the two images"
        found["accuracy_by_distance"] = accuracy_plot(distance, judged.right, what, name)
    return found


def accuracy_plot(value: ArrayLike, right: ArrayLike, what: str, name: str = "") -> Image.Image:
    """How often the scorer is right, over something known of each comparison: `what`."""
    bins = _bins(value, right)
    coin = [(bins[0].mean, 0.5), (bins[-1].mean, 0.5)]
    return _binned_plot(bins, {"a coin": coin}, title=f"{name}: accuracy by {what}", across=what)


def calibration_plot(confidence: ArrayLike, right: ArrayLike, name: str = "") -> Image.Image:
    """How often the scorer is right, over how sure it is."""
    ideal = {"as sure as right": [(0.5, 0.5), (1, 1)]}
    across = "win probability of its favourite"
    return _binned_plot(
        _bins(confidence, right), ideal, title=f"{name}: calibration", across=across
    )


def risk_plot(confidence: ArrayLike, right: ArrayLike, name: str = "") -> Image.Image:
    """The error rate among the comparisons that it is surest of."""
    coverage, risk = risk_coverage(confidence, right)
    return plot(
        {"errors among the surest": list(zip(coverage, risk, strict=True))},
        guides={"a coin": [(0, 0.5), (1, 0.5)]},
        bounds=(0, 1, 0, max(0.52, float(risk.max()) + 0.02)),
        title=f"{name}: risk and coverage",
        across="share of the comparisons judged",
    )


def ratings_plot(
    scores: ArrayLike,
    values: ArrayLike,
    curve: Sequence[float] | None,
    name: str = "",
    rating: str = "rating",
) -> Image.Image:
    """Mean opinion scores over the scorer's numbers, with the fitted logistic."""
    x, y = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    shown = np.arange(len(x)) if len(x) <= MOST else np.linspace(0, len(x) - 1, MOST).astype(int)
    curves: Mapping = {}
    if curve is not None:
        line = np.linspace(x.min(), x.max(), 200)
        curves = {"logistic": list(zip(line, logistic(line, *curve), strict=True))}
    dots = {f"{rating} of {len(x)} images": list(zip(x[shown], y[shown], strict=True))}
    title = f"{name}: {rating} by score"
    return plot(curves, dots=dots, title=title, across="score", size=(900, 600))


def _bins(value: ArrayLike, right: ArrayLike) -> list[Bin]:
    count = len(np.asarray(right))
    return accuracy_by(value, right, max(1, min(DISTANCE_BINS, count // FEWEST)))


def _binned_plot(bins: list[Bin], guides: Mapping, **how) -> Image.Image:
    """The bins' accuracy with Wilson's intervals, over their mean."""
    return plot(
        {RIGHT: [(b.mean, b.accuracy) for b in bins]},
        bars={RIGHT: [(b.mean, *wilson(b.accuracy, b.n)) for b in bins]},
        guides=guides,
        **how,
    )
