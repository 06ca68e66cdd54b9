"""The Bradley-Terry head: a convex fit of win probabilities to differences of features.

    minimise over w:  sum_p c_p [softplus(z_p) - p_p z_p] + penalty * |w - w0|^2,   z = x w

x [P, D] are the differences of the two images' features, p in [0, 1] the probability that the left
one is preferred: votes, ties (0.5) and soft labels are one and the same. The weights c are 1 / P: the
sum is a mean. The problem is convex, so what is known beforehand enters by w0 and the penalty, not by
where the search starts.

Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952; L-BFGS of `torch.optim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-9  # of the gradient, where the curvature is about 1
STALLED = 1e-15  # a loss that falls by less falls by rounding: some never come to that gradient
ROUGHLY = 1e-5  # the same, where fits are only compared: changes the loss in the sixth digit
MAX_ITERATIONS = 500


class Space(NamedTuple):
    """Features, standardised and half whitened: along the principal axes of what is standardised,
    each divided by the root of its deviation.

    The penalty is the same in all directions of this space. Whitened in full, directions in which
    pictures hardly differ would be as cheap as any; not at all, a taste that most of the variance
    knows nothing of would be too dear. Half way predicted simulated tastes on nano's features of real
    pictures best on the whole, from 50 to 5,000 comparisons.

    Where it is known what tastes weigh the features by, half of the variance that the penalty stands
    for is theirs.
    """

    center: Tensor  # [D] float64
    basis: Tensor  # [D, R] float64

    @classmethod
    def of(cls, features: Tensor, prior: Tensor | None = None) -> Space:
        """That of these features [N, D]; R < N axes. Constant features have no part in it.

        Args:
            prior: [D, K], a root of the covariance of the weights of people's tastes, in any unit:
                `Scorer.head_prior`. R may be D then.
        """
        features = features.double()
        center, std = features.mean(0), features.std(0, correction=0)
        constant = std <= 1e-6 * features.abs().amax(0)
        scale = torch.where(constant, 0.0, 1 / std)  # [D]
        x = (features - center) * scale
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        kept = variance > 1e-9 * variance.amax().clamp_min(1e-300)
        variance, axes = variance[kept], axes[:, kept]
        root = axes * variance**-0.25 / variance.sqrt().sum().sqrt()  # squared length of x: 1
        if prior is not None:
            root = _joined(root, torch.where(constant, 0.0, std)[:, None] * prior.double(), x)
        return cls(center, scale[:, None] * root)

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D] to [N, R] float64."""
        return (features.double() - self.center) @ self.basis

    def weight(self, w: Tensor) -> Tensor:
        """A weight [R] of this space as one of the features themselves, [D]."""
        return self.basis @ w


def _joined(root: Tensor, other: Tensor, x: Tensor) -> Tensor:
    """A root [D, R] of the mean of the covariances of two roots, the other's in the first one's unit.

    In that unit, the rows of x [N, D] times a root have a squared length of 1 on average.
    """
    length = (x @ other).square().sum(1).mean().sqrt()
    if length <= 1e-9 * other.norm():  # in nothing that tastes are known to weigh do x differ
        return root
    both = torch.cat([root, other / length], 1) / math.sqrt(2)
    u, s, _ = torch.linalg.svd(both, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return u[:, kept] * s[kept]


class Rows(NamedTuple):
    """Comparisons as the loss sees them, z = x w + ahead: p [P], and what each weighs, [P]."""

    x: Tensor  # [P, D]
    p: Tensor
    weight: Tensor
    ahead: Tensor  # [P]

    @classmethod
    def mean(cls, x: Tensor, p: Tensor) -> Rows:
        """Of which the loss is the mean."""
        count = len(x)
        return cls(x, p, x.new_full((count,), 1 / max(count, 1)), x.new_zeros(count))

    def and_(self, more: Rows | None) -> Rows:
        return self if more is None else Rows(*map(torch.cat, zip(self, more, strict=True)))


class Part(NamedTuple):
    """Of a head that is a mean of several: what it weighs, how it is fitted, and where from."""

    weight: float
    penalty: float
    w0: Tensor  # [D]


def fit_head(x: Tensor, p: Tensor, w0: Tensor, penalty: float, more: Rows | None = None) -> Tensor:
    """The w [D] float64 that minimises the loss above; deterministic.

    Args:
        x: [P, D], p: [P] in [0, 1], w0: [D].
        penalty: above 0; infinite gives w0.
        more: further comparisons, float64, with weights of their own.

    Raises:
        ValueError: no comparison, values that are not finite, or a penalty that is not above 0.
    """
    return fit_mean(x, p, [Part(1.0, penalty, torch.as_tensor(w0))], more)


def fit_mean(
    x: Tensor,
    p: Tensor,
    parts: Sequence[Part],
    more: Rows | None = None,
) -> Tensor:
    """The weighted mean [D] float64 of one fitted head for each part; otherwise as `fit_head`.

    Scores are linear in the head: the mean head gives the mean of the scores.
    """
    weights, penalties, starts = zip(*parts, strict=True)
    w0 = torch.stack(starts)
    x, p, w0 = (torch.as_tensor(value).detach().cpu().double() for value in (x, p, w0))
    if x.ndim != 2 or p.shape != x.shape[:1] or w0.shape[1:] != x.shape[1:]:
        shapes = ", ".join(str(list(value.shape)) for value in (x, p, w0[0]))
        raise ValueError(f"x, p and w0 must be [P, D], [P] and [D], got {shapes}")
    if not len(x):
        raise ValueError("there is no comparison to fit a head to")
    if not (x.isfinite().all() and w0.isfinite().all() and ((p >= 0) & (p <= 1)).all()):
        raise ValueError("x and w0 must be finite, and p in [0, 1]")
    if not min(penalties) > 0 or any(map(math.isnan, penalties)):
        raise ValueError(f"a penalty must be above 0, got {', '.join(map(str, penalties))}")
    mean = torch.tensor(weights, dtype=torch.float64) @ w0
    if math.isinf(min(penalties)):
        return mean
    rows = Rows.mean(x, p).and_(more)
    basis, turned = rotated(rows.x * rows.weight[:, None].sqrt(), rows.x)
    u = moved = x.new_zeros(turned.shape[1])
    for weight, penalty, start in zip(weights, penalties, w0, strict=True):
        if not math.isinf(penalty):
            offset = rows.x @ start + rows.ahead
            u = _search(rows._replace(x=turned), offset, penalty, u)
            moved = moved + weight * u
    return mean + basis @ moved


def rotated(weighted: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [D, R] of the rows' space, R <= min(P, D), and x [P, R] in it.

    It is made of the principal axes of the rows times the roots of their weights, so that the
    curvature of the loss is about diagonal, and bounded by a diagonal.
    """
    basis = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None  # [D, P]
    weighted, x = (weighted, x) if basis is None else (weighted @ basis, x @ basis)
    axes = torch.linalg.eigh(weighted.T @ weighted).eigenvectors
    return axes if basis is None else basis @ axes, x @ axes


def _search(rows: Rows, offset: Tensor, penalty: float, start: Tensor) -> Tensor:
    """u [R] that minimises the loss at z = offset + x u, + penalty |u|^2, by L-BFGS from `start`.

    In coordinates v = u / scale in which the curvature is at most 1, and about 1 in all directions,
    since those of x are its principal axes: a quarter of the second moment bounds the loss's.
    """
    x, p, weight, _ = rows
    scale = (weight @ x.square() / 4 + 2 * penalty).rsqrt()
    v = (start / scale).requires_grad_()
    search = torch.optim.LBFGS(
        [v],
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=TOLERANCE,
        tolerance_change=STALLED,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def loss() -> Tensor:
        u = scale * v
        z = offset + x @ u
        v.grad = scale * ((weight * (torch.sigmoid(z) - p)) @ x + 2 * penalty * u)
        return weight @ bradley_terry(z, p) + penalty * u.square().sum()

    search.step(loss)
    return scale * v.detach()


def search_all(
    x: Tensor, p: Tensor, weight: Tensor, offset: Tensor, penalty: float, start: Tensor
) -> Tensor:
    """`_search` for F weightings [P, F] of the same rows at S offsets [P, S], from `start` [R, S, F].

    To `ROUGHLY`, all at once, by accelerated gradients that begin anew where they would lead uphill
    (Nesterov 1983; O'Donoghue and Candes 2015): a step is two products of matrices. In the coordinates
    of `_search` its length is 1, since no weighting's curvature is above that of the largest weights.
    """
    scale = (weight.amax(1) @ x.square() / 4 + 2 * penalty).rsqrt()[:, None]
    x, shape = x * scale.T, (len(x), *start.shape[1:])
    weight, p, offset = weight[:, None, :], p[:, None, None], offset[:, :, None]
    v = ahead = start.flatten(1) / scale
    momentum = 1.0
    for _ in range(MAX_ITERATIONS):
        slope = weight * (torch.sigmoid(offset + (x @ ahead).view(shape)) - p)
        gradient = x.T @ slope.flatten(1) + 2 * penalty * scale.square() * ahead
        if gradient.abs().amax() < ROUGHLY:
            break
        step = ahead - gradient - v
        v = ahead - gradient
        if ((gradient * step).sum(0) > 0).any():
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = v + (momentum - 1) / following * step
        momentum = following
    return (scale * ahead).view(start.shape)


def bradley_terry(z: Tensor, p: Tensor) -> Tensor:
    """-log likelihood of each comparison in nats: cross entropy of p and sigmoid(z).

    Args:
        z: left score minus right score. p: probability that the left one is preferred; of any shape.
    """
    return F.softplus(z) - p * z
