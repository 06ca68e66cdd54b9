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

from .comparisons import Comparisons
from .split import folds

# In the space that `Space` makes, where a picture's features have a squared length of 1 on average.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2)) + (math.inf,)
K = 5  # folds
TOLERANCE = 1e-9  # of the gradient, where the curvature is about 1
ROUGHLY = 1e-5  # the same, where penalties are compared: changes the loss in the sixth digit
MAX_ITERATIONS = 500
LIGHT = 0.01  # times the largest weight: lighter ones are left out of a mean
WORTH = 50  # comparisons after which a start has to show that it is of use
BEHIND = 20.0  # nats: a start that does so much worse is not tried on
TYPICAL = 2.0  # difference of the scores of two images: a preference of 7 to 1
AT_MOST = 3.0  # nats: no penalty is more surprising than 20 to 1
FAR = 1.1  # times the lowest loss: smaller penalties will not come back to it


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
    tolerance: float = TOLERANCE,
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
    basis, rotated = _rotated(rows.x * rows.weight[:, None].sqrt(), rows.x)
    u = moved = x.new_zeros(rotated.shape[1])
    for weight, penalty, start in zip(weights, penalties, w0, strict=True):
        if not math.isinf(penalty):
            offset = rows.x @ start + rows.ahead
            u = _search(rows._replace(x=rotated), offset, penalty, u, tolerance)
            moved = moved + weight * u
    return mean + basis @ moved


def _rotated(weighted: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [D, R] of the rows' space, R <= min(P, D), and x [P, R] in it.

    It is made of the principal axes of the rows times the roots of their weights, so that the
    curvature of the loss is about diagonal, and bounded by a diagonal.
    """
    basis = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None  # [D, P]
    weighted, x = (weighted, x) if basis is None else (weighted @ basis, x @ basis)
    axes = torch.linalg.eigh(weighted.T @ weighted).eigenvectors
    return axes if basis is None else basis @ axes, x @ axes


def _search(rows: Rows, offset: Tensor, penalty: float, start: Tensor, tolerance: float) -> Tensor:
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
        tolerance_grad=tolerance,
        tolerance_change=0.0,
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


def _search_all(
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


class CrossValidation(NamedTuple):
    """How well penalties predict comparisons of images that were not trained on.

    Attributes:
        parts: what the head is the mean of: of each penalty that may be right its weight, and the
            mean of its starts; the weights' sum is 1.
        nll: the mean held-out loss by penalty, of its best start, for those that were tried.
        difference: [T] held-out score differences of that mean.
        p: [T] what they were to predict.
    """

    parts: tuple[Part, ...]
    nll: dict[float, float]
    difference: Tensor
    p: Tensor

    @classmethod
    def of(cls, *parts: Part) -> CrossValidation:
        """Of parts that are taken as they are."""
        return cls(parts, {}, torch.zeros(0).double(), torch.zeros(0).double())

    @property
    def penalty(self) -> float:
        """The likeliest."""
        return max(self.parts, key=lambda part: part.weight).penalty


def cross_validate(
    x: Tensor,
    w0: Tensor,
    comparisons: Comparisons,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    typical: float | None = None,
    more: Rows | None = None,
) -> CrossValidation:
    """Tries penalties, and starts, on folds that share no image, and weighs them by how they did.

    A weight is the likelihood of all comparisons, held out, times what is likely beforehand (pseudo
    Bayesian model averaging: Geisser and Eddy 1979, Yao et al. 2018). Few comparisons cannot tell
    which penalty is best: whichever seems so is so by luck, and a mean of those that may be is safer.

    From the largest penalty down, until smaller ones do worse. Each fit starts at the one before.

    Args:
        x: [P, D] differences of the comparisons; `comparisons` says between which images, and p.
        w0: [D]; or [S, D], starts, each less likely beforehand than the one before it: half as
            likely, and less where so much is compared that there is no need of it.
        typical: what two images' scores are expected to differ by beyond w0, where x is of a
            `Space`: see `surprise`. By default every penalty is as likely as any other.
        more: what every fold is trained on besides.
    """
    n, starts = len(x), w0.double().reshape(-1, x.shape[1])
    train, test = folds(comparisons, K, repeats(n), seed)
    useful = train.any(0) & test.any(0)
    train, test = train[:, useful], test[:, useful].T
    if not useful.any():
        return CrossValidation.of(Part(1.0, math.inf, starts[0]))
    rows = Rows.mean(x.double(), comparisons.p).and_(more)
    weight = (train / train.sum(0)).double()  # [P, F]
    if more is not None:
        weight = torch.cat([weight, more.weight[:, None].expand(-1, weight.shape[1])])
    rotated = _rotated(rows.x * weight.amax(1, keepdim=True).sqrt(), rows.x)[1]
    offset = rows.x @ starts.T + rows.ahead[:, None]  # [P, S]
    expected = comparisons.p.expand(len(test), -1)[test]  # [T]
    u = rotated.new_zeros(rotated.shape[1], len(starts), len(test))
    doubt = min(AT_MOST, math.log(2) * max(1, n / WORTH)) * torch.arange(len(starts))  # nats
    tries: list[_Tried] = []
    nll: dict[float, float] = {}
    for penalty in sorted(penalties, reverse=True):
        if not math.isinf(penalty):
            u = _search_all(rotated, rows.p, weight, offset, penalty, u)
        z = offset[:n, :, None] + (rotated[:n] @ u.flatten(1)).view(n, *u.shape[1:])
        z = z.permute(2, 0, 1)[test]  # [T, S]
        lost = bradley_terry(z, expected[:, None]).mean(0)  # [S]
        worth = -n * lost - doubt - surprise(penalty, n, typical)
        tries.append(_Tried(penalty, worth, starts, z))
        nll[penalty] = float(lost.min())
        if nll[penalty] > FAR * min(nll.values()):
            break
        near = n * (lost - lost.min()) < BEHIND
        starts, doubt, offset, u = starts[near], doubt[near], offset[:, near], u[:, near]
    return CrossValidation(*_averaged(tries, nll, expected))


class _Tried(NamedTuple):
    """A penalty with S starts [S, D]: logarithms of their weights [S], held-out differences [T, S]."""

    penalty: float
    worth: Tensor
    starts: Tensor
    z: Tensor


def _averaged(
    tries: Sequence[_Tried], nll: dict[float, float], p: Tensor
) -> tuple[tuple[Part, ...], dict[float, float], Tensor, Tensor]:
    """What `CrossValidation` holds."""
    weights = torch.cat([each.worth for each in tries]).softmax(0)
    weights = torch.where(weights < LIGHT * weights.max(), 0.0, weights)
    weights = (weights / weights.sum()).split([len(each.worth) for each in tries])
    parts, z = [], torch.zeros_like(p)
    for each, weight in zip(tries, weights, strict=True):
        if total := float(weight.sum()):
            parts.append(Part(total, each.penalty, weight / total @ each.starts))
            z += each.z @ weight
    return tuple(parts), nll, z, p


def repeats(count: int) -> int:
    """How often so many comparisons are divided into folds: few, several times."""
    return max(1, min(3, 600 // count))


def surprise(penalty: float, count: int, typical: float | None) -> float:
    """How unlikely a penalty is beforehand, in nats: what `count` comparisons have to make up for.

    A penalty and a number of comparisons stand for a normal distribution of what the taste adds to
    the difference of two images' scores, of deviation 1 / sqrt(penalty count). Its logarithm is taken
    as normal about that of `typical`, of deviation 1; but a taste that adds next to nothing is never
    ruled out. Without this, few comparisons often choose a penalty under which nothing is learned, or
    chance is.
    """
    if typical is None:
        return 0.0
    return min(AT_MOST, 0.5 * math.log(typical * math.sqrt(penalty * count)) ** 2)
