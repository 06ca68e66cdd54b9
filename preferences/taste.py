"""A taste: what a personal head adds to the base's judgement, learned from comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .head import Part, Rows, Space, fit_mean
from .weighing import PENALTIES, TYPICAL, CrossValidation, cross_validate

BASE = (0.0, 0.5, 1.0, 2.0)  # how much of the base's score a taste may start from, in its units
DEAR = 0.1  # times the score: its weight is dearer to move than those of the embedding
STRENGTH = 4.0  # of what is kept, all together, where all comparisons together weigh 1
SHARP = 32.0  # 1 / the score difference within which the order of what is kept is in doubt
MARGIN = 0.17  # by how much on average: without, the order does not hold for other pictures


class View(NamedTuple):
    """What a head sees of pictures: their embeddings in a space, and what the base makes of them.

    The base's score comes last, in units that `gain` makes of it.
    """

    space: Space
    gain: float | None = None  # None without a base

    def __call__(self, embeddings: Tensor, scores: Tensor | None) -> Tensor:
        """[N, D], and the base's scores [N], to [N, R] float64, or [N, R + 1] with a base."""
        x = self.space(embeddings)
        if self.gain is None:
            return x
        return torch.cat([x, DEAR * self.gain * scores.double()[:, None]], 1)

    def starts(self, shares: Sequence[float] = BASE) -> Tensor:
        """Heads that give shares [S] of the base's score, in its units: [S, R + 1]. Without, 0."""
        axes = self.space.basis.shape[1]
        if self.gain is None:
            return torch.zeros(1, axes).double()
        starts = torch.zeros(len(shares), axes + 1).double()
        starts[:, axes] = torch.tensor(shares) / DEAR
        return starts

    def restarted(self, part: Part) -> Part:
        """A part of another view's head as one of this view's."""
        if self.gain is None:
            return part._replace(w0=self.starts()[0])
        return part._replace(w0=self.starts([DEAR * float(part.w0[-1])])[0])


class Kept(NamedTuple):
    """A pairs whose order a taste must not turn round: the embeddings [A, D] and base scores [A]."""

    better: Tensor
    worse: Tensor
    better_scores: Tensor
    worse_scores: Tensor

    def rows(self, view: View) -> Rows:
        """As comparisons with a loss that is almost flat once `MARGIN` is kept.

        Each pair has to keep it in proportion to what the base makes of the pair, so that a copy that
        can hardly be told from its original need not fall by as much as a bad one. Beyond, the loss
        says nothing: softplus(-s z) / s is a hinge at 0, rounded by 1 / s.
        """
        x = view(self.better, self.better_scores) - view(self.worse, self.worse_scores)
        n, base = len(x), self.better_scores - self.worse_scores
        weight = x.new_full((n,), STRENGTH / SHARP / max(n, 1))
        return Rows(SHARP * x, x.new_ones(n), weight, -SHARP * MARGIN * base.double() / base.mean())


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
    like: Taste | None = None,
    prior: Tensor | None = None,
) -> Taste:
    """Fits a taste, penalties and the base's part weighed by cross-validation over images. Deterministic.

    The penalty holds it to a share of the base's score: an infinite one gives that alone. A base that
    knows nothing of the taste has no share.

    Args:
        embeddings: [N, D] of `comparisons.images`.
        scores: [N], the base's; None to start from nothing, where an infinite penalty gives 0.
        unit: the difference of base scores that makes odds of e to 1, as far as is known beforehand;
            by default their deviation.
        penalties: those to weigh; one is taken as it is, from the base as it is.
        kept: pairs to be ordered right whatever the comparisons say.
        like: of nearly the same comparisons: its penalties and shares are taken as they are.
        prior: what is known of people's tastes on this embedding: `Scorer.head_prior`.

    Raises:
        ValueError: no comparison of two different images, or features that are not finite.
    """
    if not len(comparisons) or bool((comparisons.pairs[:, 0] == comparisons.pairs[:, 1]).all()):
        raise ValueError("there is no comparison of two different images")
    space = Space.of(embeddings, prior)
    if not space.basis.shape[1]:
        raise ValueError(
            "the compared images are all one to the base: it has nothing to learn from"
        )
    unit = float(scores.double().std()) if unit is None and scores is not None else unit
    view = View(space, None if scores is None else 1 / unit if unit else 0.0)
    features = view(embeddings, scores)
    left, right = comparisons.pairs.T
    x, p = features[left] - features[right], comparisons.p
    more = kept.rows(view) if kept is not None and len(kept.better) else None
    if like is not None:
        chosen = CrossValidation.untried(*map(view.restarted, like.chosen.parts))
    else:
        chosen = _weighed(x, comparisons, view, penalties, seed, more)
    w = fit_mean(x, p, chosen.parts, more)
    axes = space.basis.shape[1]
    gain = 0.0 if scores is None else DEAR * view.gain * float(w[axes])
    bias = 0.0 if scores is None else -gain * float(scores.double().mean())
    return Taste(space.weight(w[:axes]), space.center, gain, bias, chosen, view, w)


def _weighed(
    x: Tensor,
    comparisons: Comparisons,
    view: View,
    penalties: Sequence[float],
    seed: int,
    more: Rows | None,
) -> CrossValidation:
    """Of several penalties; where there is one, or nothing to test them on, from the base as it is."""
    if len(penalties) > 1:
        found = cross_validate(x, view.starts(), comparisons, penalties, seed, TYPICAL, more)
        if found.nll:
            return found
    return CrossValidation.untried(Part(1.0, max(penalties), view.starts([1.0])[0]))
