"""A taste: what a personal head adds to the base's judgement, learned from comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .head import PENALTIES, TYPICAL, CrossValidation, Rows, Space, cross_validate, fit_head

STRENGTH = 4.0  # of what is kept, all together, where all comparisons together weigh 1
LEAST = 0.1  # gain of a base whose order is kept, 1 / unit: learning starts where it is right
SHARP = 16.0  # 1 / the score difference beyond which the order of what is kept is settled


class View(NamedTuple):
    """What a head sees of pictures: their embeddings in a space, and what the base makes of them.

    The base's score comes last, multiplied by how much it is known to count before the rest is
    learned: a head with 1 there and 0 elsewhere gives that, and is where learning starts from.
    """

    space: Space
    gain: float | None = None  # None without a base

    def __call__(self, embeddings: Tensor, scores: Tensor | None) -> Tensor:
        """[N, D], and the base's scores [N], to [N, R] float64, or [N, R + 1] with a base."""
        x = self.space(embeddings)
        return x if self.gain is None else torch.cat([x, self.gain * scores.double()[:, None]], 1)

    @property
    def w0(self) -> Tensor:
        w0 = self.space.basis.new_zeros(self.space.basis.shape[1])
        return w0 if self.gain is None else torch.cat([w0, w0.new_ones(1)])


class Kept(NamedTuple):
    """A pairs whose order a taste must not turn round: the embeddings [A, D] and base scores [A]."""

    better: Tensor
    worse: Tensor
    better_scores: Tensor | None = None
    worse_scores: Tensor | None = None

    def rows(self, view: View) -> Rows | None:
        """As comparisons with a loss that is almost flat once the order is right.

        It says nothing about by how much: softplus(-s z) / s is a hinge at 0, rounded by 1 / s.
        """
        x = view(self.better, self.better_scores) - view(self.worse, self.worse_scores)
        if not len(x):
            return None
        return Rows(SHARP * x, x.new_ones(len(x)), x.new_full((len(x),), STRENGTH / SHARP / len(x)))


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
    view: View
    w: Tensor  # of what the view shows: the same judgement, where the penalty is even

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
    kept: Kept | None = None,
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
        kept: pairs to be ordered right whatever the comparisons say.

    Raises:
        ValueError: no comparison of two different images, or features that are not finite.
    """
    if not len(comparisons) or bool((comparisons.pairs[:, 0] == comparisons.pairs[:, 1]).all()):
        raise ValueError("there is no comparison of two different images")
    space = Space.of(embeddings)
    if not space.basis.shape[1]:
        raise ValueError(
            "the compared images are all one to the base: it has nothing to learn from"
        )
    left, right = comparisons.pairs.T
    gain = None
    if scores is not None:
        scores = scores.double()
        least = -math.inf if kept is None else LEAST
        difference = scores[left] - scores[right]
        gain = _gain(difference, comparisons.p, unit or float(scores.std()), least)
    view = View(space, gain)
    features = view(embeddings, scores)
    x = features[left] - features[right]
    more = kept.rows(view) if kept is not None else None
    if len(penalties) > 1:
        chosen = cross_validate(x, view.w0, comparisons, penalties, seed, TYPICAL, more)
    else:
        chosen = CrossValidation(penalties[0], {}, x.new_zeros(0), x.new_zeros(0))
    w = fit_head(x, comparisons.p, view.w0, chosen.penalty, more)
    axes = space.basis.shape[1]
    gain = 0.0 if gain is None else gain * float(w[axes])
    bias = 0.0 if scores is None else -gain * float(scores.mean())
    return Taste(space.weight(w[:axes]), space.center, gain, bias, chosen, view, w)


def _gain(difference: Tensor, p: Tensor, unit: float, least: float) -> float:
    """What the base's differences [P] are multiplied by: the likeliest, 1 / (2 unit) beforehand.

    A base may know all of a taste or nothing. What is known beforehand weighs as a normal
    distribution as wide as its mean, so that a handful of comparisons that the base has all right, or
    all wrong, gives no extreme.
    """
    if not unit > 0:
        return 0.0  # the base finds all images equal
    half = torch.full((1,), 0.5, dtype=torch.float64)
    return max(least, float(fit_head(difference[:, None] / unit, p, half, 2 / len(p)))) / unit
