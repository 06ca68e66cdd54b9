"""Which comparison would teach a personal head most.

What is known of the head after some comparisons is about Gaussian (Laplace's approximation): its
mean is the fitted w, its covariance the inverse of the loss's curvature. A further comparison of two
images makes the score differences of all other pairs surer; suggested is the pair that, on average
over the vote, takes most of their variance away (transductive experimental design, Yu et al. 2006).
All pairs count alike: counting those more whose order is in doubt learned tastes that are not quite
linear in the features slower. For their sake, too, images that lie far apart are trusted less: they
would say most about a linear taste, but of one that has an optimum between the two nothing, or worse.
Several suggestions are made one after the other, each as if those before were answered, so that they
do not ask the same.

Candidates are random pairs, a few of each image drawn. The best of all pairs would be far from what
pairs are like on the whole, and a head that cannot be quite right, since it is linear and keeps copies
below originals, learned from such pairs to judge the others worse.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .taste import Taste

MOST = 1.0  # penalty: an infinite one says that nothing was learned yet, not that all is known
CURVED = 4.0  # at the mean squared distance, a linear head trusts a vote 1 + CURVED times less
IMAGES = 160  # drawn for one suggestion
CANDIDATES = 4  # pairs of each of them: with the next ones in the order drawn


class Posterior(NamedTuple):
    """What is known of a head: w ~ N(mean, (L L^T)^-1).

    Attributes:
        mean: [D] float64.
        factor: L [D, D] float64, lower triangular: Cholesky's of the precision.
    """

    mean: Tensor
    factor: Tensor


def posterior(x: Tensor, w: Tensor, penalty: float) -> Posterior:
    """Laplace's approximation after a fit.

    Args:
        x: [P, D] differences of the features that were compared; P may be 0.
        w: [D] that minimises the mean loss + penalty |w - w0|^2, as `fit_head` gives it.
        penalty: above 0 and finite. Without comparisons it is the precision of what is known
            beforehand, halved, as for one comparison.
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"the penalty must be above 0 and finite, got {penalty}")
    x, w = x.double(), w.double()
    p = torch.sigmoid(x @ w)
    precision = (x * (p * (1 - p))[:, None]).T @ x  # the sum's, so the penalty counts P times
    precision.diagonal().add_(2 * penalty * max(len(x), 1))
    return Posterior(w, torch.linalg.cholesky(precision))


def suggest_pairs(
    x: Tensor,
    known: Posterior,
    count: int = 1,
    *,
    compared: Tensor | None = None,
    images: int = IMAGES,
    seed: int = 0,
) -> Tensor:
    """`count` pairs worth comparing next, [count, 2] int64, the best first, which is on which side drawn.

    Fewer when no more are left. No image comes twice in one call. Time does not depend on N.

    Args:
        x: [N, D] features of all images, as those that the head reads.
        compared: [P, 2] pairs that need not be asked again.
        images: how many of the N are drawn; at least 4 count.
    """
    if x.ndim != 2 or x.shape[1:] != known.mean.shape:
        raise ValueError(f"features must be [N, {len(known.mean)}], got {list(x.shape)}")
    generator = torch.Generator().manual_seed(seed)
    drawn = _draw(len(x), max(images, 4 * count), generator)
    found = _best(x[drawn].double(), known, count, ~_among(drawn, compared, len(x)))
    return _on_sides(drawn[found], generator)


def suggest_for(
    taste: Taste,
    embeddings: Tensor,
    scores: Tensor | None,
    pairs: Tensor,
    count: int,
    seed: int = 0,
) -> Tensor:
    """`suggest_pairs` for a taste that was fitted to `pairs` [P, 2] of these N images.

    Only the images that are drawn, and those compared, are looked at: time hardly depends on N.
    """

    def seen(rows: Tensor) -> Tensor:
        return taste.view(embeddings[rows], None if scores is None else scores[rows]).double()

    generator = torch.Generator().manual_seed(seed)
    drawn = _draw(len(embeddings), max(IMAGES, 4 * count), generator)
    compared, places = pairs.unique(return_inverse=True)
    x = seen(compared)
    penalty = min(taste.chosen.penalty, MOST)
    known = posterior(x[places[:, 0]] - x[places[:, 1]], taste.w, penalty)
    found = _best(seen(drawn), known, count, ~_among(drawn, pairs, len(embeddings)))
    return _on_sides(drawn[found], generator)


def _best(features: Tensor, known: Posterior, count: int, open_: Tensor) -> Tensor:
    """Up to `count` pairs of M images that are worth most, [K, 2], each as if those before were answered.

    Args:
        features: [M, D] float64, in the order drawn: candidates are pairs of those next to each
            other, and all where none of these is left.
        open_: [M, M] bool, which pairs may be asked.
    """
    score = features @ known.mean  # [M]
    trust = linearity(features)
    whitened = torch.linalg.solve_triangular(known.factor, features.T, upper=False)
    covariance = whitened.T @ whitened  # [M, M] of the scores
    near, open_, pairs = _next_ones(len(features)), open_.clone(), []
    while len(pairs) < count and open_.any():
        candidates = near & open_ if (near & open_).any() else open_
        gain = information(score, covariance, trust).masked_fill(~candidates, -1)
        i, j = divmod(int(gain.argmax()), len(features))
        pairs.append((i, j))
        covariance = observed(score, covariance, i, j, trust)
        open_[[i, j]] = open_[:, [i, j]] = False
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def _on_sides(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Which of each pair [K, 2] is left is drawn."""
    left = torch.rand(len(pairs), generator=generator) < 0.5
    return torch.where(left[:, None], pairs, pairs.flip(1))


def linearity(features: Tensor) -> Tensor:
    """What share of a vote's precision is left, since no taste is quite linear in the features: [M, M].

    With d the squared distance of two images over the mean one of M, 1 / (1 + CURVED d^2): what a
    curved taste adds to a difference, which a linear one sees as noise, grows with that square.
    Designs that stay near the bulk for this reason are Box and Draper's (1959).

    Args:
        features: [M, D] as the head reads them.
    """
    distance = _of_pairs(features @ features.T).clamp_(min=0)
    usual = distance.sum() / max(len(features) * (len(features) - 1), 1)
    return 1 / (1 + CURVED * (distance / usual.clamp_min(1e-300)).square())


def information(score: Tensor, covariance: Tensor, trust: Tensor) -> Tensor:
    """What a comparison of each pair of M images takes off the variance of all pairs, [M, M].

    With d = e_i - e_j, a vote on (i, j) is worth h = trust E[p (1 - p)] of precision about d s, and lowers
    the covariance K of the scores s by K d d^T K h / (1 + h d^T K d). The sum over all pairs (k, l)
    of what that is for their difference is d^T K G K d h / (1 + h d^T K d) with G = M I - 1 1^T.

    Args:
        score: [M] means, covariance: [M, M] of the scores.
        trust: [M, M] in [0, 1], of each pair's vote.
    """
    variance = _of_pairs(covariance).clamp_(min=1e-12)
    weight = trust * vote_precision(score[:, None] - score, variance)
    mean = covariance.mean(0)
    gain = len(score) * _of_pairs(covariance @ covariance - len(score) * torch.outer(mean, mean))
    return weight * gain / (1 + weight * variance)


def vote_precision(difference: Tensor, variance: Tensor) -> Tensor:
    """p (1 - p) of a vote whose score difference is so uncertain, where p is what is to be expected.

    E[sigmoid(z)] for a Gaussian z is about sigmoid(mean / sqrt(1 + pi variance / 8)) (MacKay 1992).
    """
    p = torch.sigmoid(difference / (1 + math.pi / 8 * variance).sqrt())
    return p * (1 - p)


def observed(score: Tensor, covariance: Tensor, i: int, j: int, trust: Tensor) -> Tensor:
    """The covariance [M, M] of the scores once i and j are compared, whatever the vote is."""
    along = covariance[:, i] - covariance[:, j]
    variance = along[i] - along[j]
    weight = trust[i, j] * vote_precision(score[i] - score[j], variance)
    return covariance - torch.outer(along, along) * (weight / (1 + weight * variance))


def _draw(n: int, most: int, generator: torch.Generator) -> Tensor:
    """Which of n images are considered, each at most once."""
    return torch.randperm(n, generator=generator)[:most]


def _of_pairs(matrix: Tensor) -> Tensor:
    """d^T A d for every d = e_i - e_j of a symmetric A: [M, M]."""
    diagonal = matrix.diagonal()
    return diagonal[:, None] + diagonal - 2 * matrix


def _next_ones(m: int) -> Tensor:
    """Which pairs of m things are at most `CANDIDATES` apart, in a circle: [m, m] bool."""
    apart = (torch.arange(m)[:, None] - torch.arange(m)).abs()
    return torch.minimum(apart, m - apart) <= CANDIDATES


def _among(drawn: Tensor, compared: Tensor | None, n: int) -> Tensor:
    """Which pairs of the drawn images were compared, or are of one image: [M, M] bool."""
    closed = torch.eye(len(drawn), dtype=torch.bool)
    if compared is not None and len(compared):
        place = torch.full((n,), -1)
        place[drawn] = torch.arange(len(drawn))
        i, j = place[compared].T
        both = (i >= 0) & (j >= 0)
        closed[i[both], j[both]] = closed[j[both], i[both]] = True
    return closed
