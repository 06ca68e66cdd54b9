"""The Bradley-Terry head: a convex fit of win probabilities to differences of features.

    minimise over w:  mean_p [softplus(z_p) - p_p z_p] + penalty * |w - w0|^2,   z = x w

x [P, D] are the differences of the two images' features, p in [0, 1] the probability that the left
one is preferred: votes, ties (0.5) and soft labels are one and the same. The problem is convex, so
what is known beforehand enters by w0 and the penalty, not by where the search starts.

Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952; L-BFGS of `torch.optim`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .comparisons import Comparisons
from .split import folds

# In the space that `Space` makes, where a picture's features have a squared length of 1 on average.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2)) + (math.inf,)
K = 5  # folds
TOLERANCE = 1e-9  # of the gradient, where the curvature is about 1
ROUGHLY = 1e-4  # the same, where penalties are compared: changes the loss in the sixth digit
MAX_ITERATIONS = 500
FAR = 1.2  # times the lowest loss: smaller penalties will not come back to it


class Space(NamedTuple):
    """Features, standardised and half whitened: along the principal axes of what is standardised,
    each divided by the root of its deviation.

    The penalty is the same in all directions of this space. Whitened in full, directions in which
    pictures hardly differ would be as cheap as any; not at all, a taste that most of the variance
    knows nothing of would be too dear. Half way predicted simulated tastes on nano's features of real
    pictures best on the whole, from 50 to 5,000 comparisons.
    """

    center: Tensor  # [D] float64
    basis: Tensor  # [D, R] float64

    @classmethod
    def of(cls, features: Tensor) -> Space:
        """That of these features [N, D]; R < N axes. Constant features have no part in it."""
        features = features.double()
        center, std = features.mean(0), features.std(0, correction=0)
        constant = std <= 1e-6 * features.abs().amax(0)
        scale = torch.where(constant, 0.0, 1 / std)  # [D]
        x = (features - center) * scale
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        kept = variance > 1e-9 * variance.amax().clamp_min(1e-300)
        variance, axes = variance[kept], axes[:, kept]
        length = variance.sqrt().sum().sqrt()  # root of the mean squared length
        return cls(center, scale[:, None] * axes * variance**-0.25 / length)

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D] to [N, R] float64."""
        return (features.double() - self.center) @ self.basis

    def weight(self, w: Tensor) -> Tensor:
        """A weight [R] of this space as one of the features themselves, [D]."""
        return self.basis @ w


def fit_head(x: Tensor, p: Tensor, w0: Tensor, penalty: float) -> Tensor:
    """The w [D] float64 that minimises the loss above; deterministic.

    Args:
        x: [P, D], p: [P] in [0, 1], w0: [D].
        penalty: above 0; infinite gives w0.

    Raises:
        ValueError: no comparison, values that are not finite, or a penalty that is not above 0.
    """
    x, p, w0 = (torch.as_tensor(value).detach().cpu().double() for value in (x, p, w0))
    if x.ndim != 2 or p.shape != x.shape[:1] or w0.shape != x.shape[1:]:
        shapes = ", ".join(str(list(value.shape)) for value in (x, p, w0))
        raise ValueError(f"x, p and w0 must be [P, D], [P] and [D], got {shapes}")
    if not len(x):
        raise ValueError("there is no comparison to fit a head to")
    if not (x.isfinite().all() and w0.isfinite().all() and ((p >= 0) & (p <= 1)).all()):
        raise ValueError("x and w0 must be finite, and p in [0, 1]")
    if not penalty > 0:
        raise ValueError(f"a penalty must be above 0, got {penalty}")
    if math.isinf(penalty):
        return w0
    basis, rotated = _rotated(x)
    u = _search(rotated, p, x @ w0, penalty, x.new_zeros(rotated.shape[1]), TOLERANCE)
    return w0 + basis @ u


def _rotated(x: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [D, R] of the rows' space, R <= min(P, D), and x [P, R] in it.

    It is made of the principal axes, so that the curvature of the loss is about diagonal.
    """
    basis = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None  # [D, P]
    x = x if basis is None else x @ basis
    axes = torch.linalg.eigh(x.T @ x).eigenvectors
    return axes if basis is None else basis @ axes, x @ axes


def _search(
    x: Tensor, p: Tensor, offset: Tensor, penalty: float, start: Tensor, tolerance: float
) -> Tensor:
    """u [R] that minimises mean loss(offset + x u) + penalty |u|^2, by L-BFGS from `start`.

    In coordinates v = u / scale in which the curvature is at most 1, and about 1 in all directions,
    since those of x are its principal axes: a quarter of the second moment bounds the loss's.
    """
    scale = (x.square().mean(0) / 4 + 2 * penalty).rsqrt()
    v = (start / scale).requires_grad_()
    search = torch.optim.LBFGS(
        [v],
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def loss() -> Tensor:
        u = scale * v
        z = offset + x @ u
        v.grad = scale * ((torch.sigmoid(z) - p) @ x / len(x) + 2 * penalty * u)
        return bradley_terry(z, p).mean() + penalty * u.square().sum()

    search.step(loss)
    return scale * v.detach()


def bradley_terry(z: Tensor, p: Tensor) -> Tensor:
    """-log likelihood of each comparison: cross entropy of p and sigmoid(z), of any shapes."""
    return F.softplus(z) - p * z


class CrossValidation(NamedTuple):
    """Which penalty predicts comparisons of images that were not trained on best.

    Attributes:
        penalty: the best; infinite where no fold had anything to test.
        nll: the mean held-out loss by penalty, for those that were tried.
        difference: [T] held-out score differences with the best penalty.
        p: [T] what they were to predict.
    """

    penalty: float
    nll: dict[float, float]
    difference: Tensor
    p: Tensor


def cross_validate(
    x: Tensor,
    w0: Tensor,
    comparisons: Comparisons,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> CrossValidation:
    """Tries penalties on folds that share no image: five, several times over where there are few.

    From the largest penalty down, until smaller ones do worse. Each fit starts at the one before.

    Args:
        x: [P, D] differences of the comparisons; `comparisons` says between which images, and p.
    """
    train, test = folds(comparisons, K, max(1, min(5, 2000 // len(x))), seed)
    parts = [(a, b) for a, b in zip(train.T, test.T, strict=True) if a.any() and b.any()]
    best = CrossValidation(math.inf, {}, x.new_zeros(0), x.new_zeros(0))
    if not parts:
        return best
    x, p, offset = x.double(), comparisons.p, x.double() @ w0.double()
    _, rotated = _rotated(x)
    problems = [(rotated[a], p[a], offset[a]) for a, _ in parts]
    u = [rotated.new_zeros(rotated.shape[1])] * len(parts)
    expected = torch.cat([p[b] for _, b in parts])
    nll: dict[float, float] = {}
    for penalty in sorted(penalties, reverse=True):
        if not math.isinf(penalty):
            u = [
                _search(*problem, penalty, start, ROUGHLY)
                for problem, start in zip(problems, u, strict=True)
            ]
        z = torch.cat([offset[b] + rotated[b] @ w for (_, b), w in zip(parts, u, strict=True)])
        nll[penalty] = float(bradley_terry(z, expected).mean())
        if nll[penalty] <= min(nll.values()):
            best = CrossValidation(penalty, nll, z, expected)
        elif nll[penalty] > FAR * min(nll.values()):
            break
    return best
