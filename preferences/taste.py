"""A taste: what a personal head adds to the base's judgement, learned from comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .head import PENALTIES, CrossValidation, Space, cross_validate, fit_head


class Taste(NamedTuple):
    """score = gain * base score + weight . (embedding - center) + bias, and how it was chosen.

    Its unit makes sigmoid(score A - score B) the probability that A is preferred; 0 is the average of
    the images that it was fitted on.
    """

    weight: Tensor  # [D] float64
    center: Tensor  # [D] float64
    gain: float
    bias: float
    chosen: CrossValidation

    def __call__(self, embeddings: Tensor, scores: Tensor | None = None) -> Tensor:
        """[N, D], and the base's scores [N], to [N] float64. Without those, of what has no base."""
        own = (embeddings.double() - self.center) @ self.weight + self.bias
        return own if scores is None else own + self.gain * scores.double()


def fit_taste(
    embeddings: Tensor,
    scores: Tensor | None,
    comparisons: Comparisons,
    *,
    unit: float | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Taste:
    """Fits a taste, its penalty chosen by cross-validation over images. Deterministic.

    The penalty holds it to the base: an infinite one gives the base's own scores, in units in which
    their differences predict the comparisons best.

    Args:
        embeddings: [N, D] of `comparisons.images`.
        scores: [N], the base's; None to start from nothing, where an infinite penalty gives 0.
        unit: the difference of base scores that makes odds of e to 1, as far as is known beforehand;
            by default their deviation.
        penalties: those to choose from; one is taken as it is.

    Raises:
        ValueError: no comparison of two different images, or features that are not finite.
    """
    if not len(comparisons) or bool((comparisons.pairs[:, 0] == comparisons.pairs[:, 1]).all()):
        raise ValueError("there is no comparison of two different images")
    left, right = comparisons.pairs.T
    space = Space.of(embeddings)
    features, gain = space(embeddings), 0.0
    axes = features.shape[1]
    if not axes:
        raise ValueError(
            "the compared images are all one to the base: it has nothing to learn from"
        )
    w0 = torch.zeros(axes).double()
    if scores is not None:
        scores = scores.double()
        gain = _gain(scores[left] - scores[right], comparisons.p, unit or float(scores.std()))
        features = torch.cat([features, gain * scores[:, None]], 1)
        w0 = torch.cat([w0, torch.ones(1).double()])
    x = features[left] - features[right]
    chosen = cross_validate(x, w0, comparisons, penalties, seed)
    w = fit_head(x, comparisons.p, w0, chosen.penalty)
    weight, bias = space.weight(w[:axes]), 0.0
    if scores is not None:
        gain *= float(w[-1])
        bias = -gain * float(scores.mean())
    return Taste(weight, space.center, gain, bias, chosen)


def _gain(difference: Tensor, p: Tensor, unit: float) -> float:
    """What the base's differences [P] are multiplied by: the likeliest, 1 / unit beforehand.

    What is known beforehand weighs as a normal distribution half as wide as its mean, so that a
    handful of comparisons that the base has all right, or all wrong, gives no extreme.
    """
    if not unit > 0:
        return 0.0  # the base finds all images equal
    one = torch.ones(1, dtype=torch.float64)
    return float(fit_head(difference[:, None] / unit, p, one, 2 / len(p))) / unit
