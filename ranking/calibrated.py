"""Win probabilities, and ranks from 0 to 10 that preserve them.

Method B of the JoyQuality README (https://github.com/fpgaminer/joyquality): tau is fitted to
comparisons, b shifts the mean rank, `rank = 10 * sigmoid((s - b) / tau)`. Unlike upstream, b is
solved for the same factor 10 as the rank, and a saturated rank of 10 stays in the last bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from .checks import Scores, as_real, as_scores, exact_dtype, positive, whole


def win_probability(a: Scores | float, b: Scores | float, tau: float = 1.0) -> torch.Tensor:
    """P(a wins over b) = sigmoid((a - b) / tau), in [0, 1] (Bradley-Terry).

    Scores of any shapes that broadcast; differentiable. Equal scores give 0.5, infinite ones too;
    NaN gives NaN.
    """
    a, b = as_real(a), as_real(b)
    both_infinite = a.isinf() & (a == b)  # where inf - inf would be NaN
    difference = torch.where(both_infinite, 0.0, a - b)
    return torch.sigmoid(difference / positive("tau", tau))


def fit_tau(
    scores: Scores, pairs: torch.Tensor | Sequence[Sequence[int]], y: Scores | float = 1.0
) -> float:
    """The tau that makes `win_probability` match the comparisons best (maximum likelihood).

    Args:
        scores: `[N]`; those compared must be finite.
        pairs: int `[M, 2]`, indices into `scores`.
        y: `[M]` or one number in [0, 1], how likely the first of a pair wins; 1.0 = winners first.

    Minimises BCE(y, sigmoid((s_i - s_j) / tau)), which is convex in 1 / tau; the root of its slope
    is found by bisection in float64, so the result is deterministic. Pairs of equal scores say
    nothing about tau. ValueError if tau does not exist: no pair of different scores; the comparisons
    do not favour the higher score (tau -> inf); they never contradict it (tau -> 0).
    """
    d, y = _differences(scores, pairs, y)
    scale = float(d.abs().max()) if d.numel() else 0.0
    if scale == 0:
        raise ValueError("tau needs at least one comparison between different scores")
    x, y = d[d != 0] / scale, y[d != 0]

    def slope(beta: float) -> float:  # of the loss, at beta = scale / tau; never decreases
        return float((x * (torch.sigmoid(beta * x) - y)).mean())

    # Not just >= 0: comparisons that cancel out leave a rounding error of either sign.
    if slope(0.0) > -1e-12 * float(x.abs().mean()):
        raise ValueError(
            "the comparisons do not favour the higher score, so no finite tau fits them: "
            "check that left and right, or winner and loser, are not swapped, and that the scorer "
            "suits the data"
        )
    if slope(1e300) <= 0:
        raise ValueError(
            "the comparisons never contradict the scores, so tau would be 0: add comparisons, "
            "some of them close, or give y as probabilities below 1"
        )
    return scale / _increasing_root(slope)


def solve_b(scores: Scores, tau: float, target_mean: float = 5.0) -> float:
    """The b for which the mean of `calibrated_rank(scores, tau, b)` is `target_mean`.

    `target_mean` lies strictly between 0 and 10. Only finite scores count; ValueError if there is
    none. By bisection in float64, to 1e-12 tau.
    """
    tau = positive("tau", tau)
    if not 0 < target_mean < 10:
        raise ValueError(f"target_mean must be strictly between 0 and 10, got {target_mean}")
    s = as_scores(scores).detach()
    s = s[s.isfinite()].to(exact_dtype(s.device))
    if not s.numel():
        raise ValueError("b needs at least one finite score")
    # With b here every score ranks at least (at most) target_mean, so the mean does too.
    shift = tau * math.log(target_mean / (10 - target_mean))
    low, high = float(s.min()) - shift, float(s.max()) - shift
    while high - low > 1e-12 * tau:
        b = (low + high) / 2
        if b in (low, high):  # adjacent floats
            break
        if calibrated_rank(s, tau, b).mean() > target_mean:
            low = b  # ranks too high: a higher b lowers them
        else:
            high = b
    return (low + high) / 2


def calibrated_rank(scores: Scores, tau: float, b: float) -> torch.Tensor:
    """`10 * sigmoid((scores - b) / tau)`: continuous in [0, 10]; any shape, differentiable.

    b is the score of rank 5; infinite scores rank 0 and 10, NaN gives NaN.
    """
    if not math.isfinite(b):
        raise ValueError(f"b must be finite, got {b}")
    return 10 * torch.sigmoid((as_real(scores) - b) / positive("tau", tau))


def rank_bucket(rank: Scores, n: int = 10) -> torch.Tensor:
    """Divide the ranks 0..10 into n equal buckets: int64 `[N]` in 0..n-1, NaN -> -1.

    A rank of exactly 10, where the sigmoid saturates, is in bucket n - 1. ValueError if a rank lies
    outside [0, 10].
    """
    rank = as_scores(rank).detach()
    n = whole("n", n, 1)
    if ((rank < 0) | (rank > 10)).any():
        raise ValueError("ranks must be in [0, 10]: give calibrated ranks, not scores")
    part = (rank.to(exact_dtype(rank.device)) * n / 10).floor().clamp(max=n - 1)
    return part.nan_to_num(nan=-1).long()


@dataclass(frozen=True)
class Calibration:
    """tau and b of one scorer on one set of images."""

    tau: float
    b: float

    def __post_init__(self) -> None:
        positive("tau", self.tau)
        if not math.isfinite(self.b):
            raise ValueError(f"b must be finite, got {self.b}")

    @classmethod
    def fit(
        cls,
        scores: Scores,
        pairs: torch.Tensor | Sequence[Sequence[int]],
        y: Scores | float = 1.0,
        target_mean: float = 5.0,
    ) -> Calibration:
        """`fit_tau` on the comparisons, then `solve_b` on all the scores."""
        tau = fit_tau(scores, pairs, y)
        return cls(tau, solve_b(scores, tau, target_mean))

    def rank(self, scores: Scores) -> torch.Tensor:
        """See `calibrated_rank`."""
        return calibrated_rank(scores, self.tau, self.b)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> Calibration:
        """The inverse of `to_dict`. ValueError if it holds other keys."""
        if set(values) != {"tau", "b"}:
            raise ValueError(f"a calibration has the keys tau and b, got {sorted(values)}")
        return cls(float(values["tau"]), float(values["b"]))


def _differences(
    scores: Scores, pairs: torch.Tensor | Sequence[Sequence[int]], y: Scores | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score differences and labels of the comparisons, both float64 `[M]` on the CPU."""
    scores, pairs = as_scores(scores).detach(), torch.as_tensor(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be int64 [M, 2] with M > 0, got {pairs.dtype} {tuple(pairs.shape)}"
        )
    if ((pairs < 0) | (pairs >= scores.numel())).any():
        raise ValueError(f"pairs must be indices into the scores, 0..{scores.numel() - 1}")
    compared = scores[pairs.to(scores.device)].cpu().double()  # [M, 2]
    if not compared.isfinite().all():
        raise ValueError("compared scores must be finite: leave out pairs that could not be scored")
    y = as_real(y).detach().cpu().double()
    if y.shape not in ((), pairs.shape[:1]):
        raise ValueError(f"y must be one number or one per pair, got {tuple(y.shape)}")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("y must be in [0, 1]")
    return compared[:, 0] - compared[:, 1], y.expand(len(pairs))


def _increasing_root(f: Callable[[float], float]) -> float:
    """Where the increasing `f` crosses 0, in (0, inf), to float precision."""
    high = 1.0
    while f(high) < 0:
        high *= 2
    low = high / 2
    while f(low) > 0:
        low, high = low / 2, low
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return middle
