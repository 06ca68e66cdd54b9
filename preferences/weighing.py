"""Which penalties, and how much of a base, predict comparisons of images that were not trained on.

Few comparisons cannot tell: whichever does best does so by luck. So none is chosen; the head is the
mean over all that may be right, weighed by how they did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .head import Part, Rows, bradley_terry, rotated, search_all
from .split import folds

# In the space that `Space` makes, where a picture's features have a squared length of 1 on average.
PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 2)) + (math.inf,)
K = 5  # folds
TYPICAL = 2.0  # difference of the scores of two images: a preference of 7 to 1
AT_MOST = 3.0  # nats: no penalty is more surprising than 20 to 1
WORTH = 50  # comparisons after which a start has to show that it is of use
FAR = 1.1  # times the lowest loss: smaller penalties will not come back to it
BEHIND = 20.0  # nats: a start that does so much worse is not tried on
LIGHT = 0.01  # times the largest weight: lighter ones are left out of the mean


class CrossValidation(NamedTuple):
    """How well penalties predict comparisons of images that were not trained on.

    Attributes:
        parts: what the head is the mean of: of each penalty that may be right its weight, and the
            mean of its starts; the weights' sum is 1.
        nll: the mean held-out loss by penalty, of its best start, for those that were tried.
        difference: [T] held-out score differences of that mean.
        p: [T] what they were to predict.
        of: [T] which comparison each is of: where there are few, each is held out several times.
    """

    parts: tuple[Part, ...]
    nll: dict[float, float]
    difference: Tensor
    p: Tensor
    of: Tensor

    @classmethod
    def untried(cls, *parts: Part) -> CrossValidation:
        """Parts that are taken as they are."""
        none = torch.zeros(0)
        return cls(parts, {}, none.double(), none.double(), none.long())

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

    A weight is the likelihood of all comparisons, held out, times what is likely beforehand: pseudo
    Bayesian model averaging (Geisser and Eddy 1979; Yao et al. 2018).

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
        return CrossValidation.untried(Part(1.0, math.inf, starts[0]))
    rows = Rows.mean(x.double(), comparisons.p).and_(more)
    weight = _in_each(train, more)
    turned = rotated(rows.x * weight.amax(1, keepdim=True).sqrt(), rows.x)[1]
    offset = rows.x @ starts.T + rows.ahead[:, None]  # [P, S]
    expected = comparisons.p.expand(len(test), -1)[test]  # [T]
    u = turned.new_zeros(turned.shape[1], len(starts), len(test))
    doubt = min(AT_MOST, math.log(2) * max(1, n / WORTH)) * torch.arange(len(starts))  # nats
    tries: list[_Tried] = []
    nll: dict[float, float] = {}
    for penalty in sorted(penalties, reverse=True):
        if not math.isinf(penalty):
            u = search_all(turned, rows.p, weight, offset, penalty, u)
        z = offset[:n, :, None] + (turned[:n] @ u.flatten(1)).view(n, *u.shape[1:])
        z = z.permute(2, 0, 1)[test]  # [T, S]
        lost = bradley_terry(z, expected[:, None]).mean(0)  # [S]
        worth = -n * lost - doubt - surprise(penalty, n, typical)
        tries.append(_Tried(penalty, worth, starts, z))
        nll[penalty] = float(lost.min())
        if nll[penalty] > FAR * min(nll.values()):
            break
        near = n * (lost - lost.min()) < BEHIND
        starts, doubt, offset, u = starts[near], doubt[near], offset[:, near], u[:, near]
    of = torch.arange(n).expand(len(test), -1)[test]
    parts, z = _averaged(tries)
    return CrossValidation(parts, nll, z, expected, of)


def _in_each(train: Tensor, more: Rows | None) -> Tensor:
    """What each row weighs in each fold [P, F]: as a mean of those that it trains on, and `more`."""
    weight = (train / train.sum(0)).double()
    if more is None:
        return weight
    return torch.cat([weight, more.weight[:, None].expand(-1, weight.shape[1])])


class _Tried(NamedTuple):
    """A penalty with S starts [S, D]: logarithms of their weights [S], held-out differences [T, S]."""

    penalty: float
    worth: Tensor
    starts: Tensor
    z: Tensor


def _averaged(tries: Sequence[_Tried]) -> tuple[tuple[Part, ...], Tensor]:
    """The parts of the mean head, and the differences [T] of its held-out scores."""
    weights = torch.cat([each.worth for each in tries]).softmax(0)
    weights = torch.where(weights < LIGHT * weights.max(), 0.0, weights)
    weights = (weights / weights.sum()).split([len(each.worth) for each in tries])
    parts, z = [], torch.zeros_like(tries[0].z[:, 0])
    for each, weight in zip(tries, weights, strict=True):
        if total := float(weight.sum()):
            parts.append(Part(total, each.penalty, weight / total @ each.starts))
            z += each.z @ weight
    return tuple(parts), z


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
