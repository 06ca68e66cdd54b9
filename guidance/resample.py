"""Particles' weights, resampling, and the new noise that copies need. Shared by every host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .schedulers import Level

POTENTIALS = ("difference", "max")


class Weights:
    """Of n particles, in any number of independent groups: log w, [..., n].

    Args:
        lam: of phi = lam * reward, the reward in standard deviations (see `unit`).
        shares: the scorers' weights, [S].
        unit: the scorers' unit if it is known; by default the standard deviation among the particles,
            the largest so far. It may change, since phi telescopes with it.
    """

    def __init__(
        self,
        lam: float,
        shares: Sequence[float] = (1.0,),
        potential: str = "difference",
        unit: float | None = None,
    ):
        self.lam, self.shares, self.potential, self.known = lam, list(shares), potential, unit
        self.unit: Tensor | None = None  # [S, ..., 1]
        self.log: Tensor | None = None
        self.phi: Tensor | None = None  # that log holds already

    def update(self, table: Tensor, final: bool = False) -> None:
        """Takes in rewards [S, ..., n]. A NaN is a particle that dies.

        The last update, of finished images, makes the product of all factors exp(lam * reward) for
        "max" too.
        """
        phi = self._phi(table.double())
        dead = phi.isnan()
        phi = phi.masked_fill(dead, 0.0)
        if self.phi is None:
            self.log, self.phi = torch.zeros_like(phi), torch.zeros_like(phi)
        elif self.potential == "max" and not final:
            phi = torch.maximum(phi, self.phi)
        self.log = (self.log + phi - self.phi).masked_fill(dead, -math.inf)
        self.phi = phi
        if (self.log == -math.inf).all(-1).any():
            raise ValueError("no particle has a score")

    def _phi(self, table: Tensor) -> Tensor:
        """lam * rewards in their units, [..., n]."""
        unit = spread(table) if self.known is None else torch.full_like(table[..., :1], self.known)
        self.unit = unit if self.unit is None else torch.maximum(self.unit, unit)
        # Where all are alike, no one is better.
        rewards = torch.where(self.unit > 0, table / self.unit, table * 0)
        return self.lam * torch.tensordot(torch.tensor(self.shares).to(table), rewards, 1)

    def resample(self, u: Tensor, where: Tensor | None = None) -> Tensor:
        """Draws particles in proportion to their weights, which are equal afterwards, their mean.

        Args:
            u: [..., 1] uniform in [0, 1).
            where: [...] which groups; all by default.

        Returns:
            [..., n] whom each goes on from.
        """
        index = systematic(self.log.softmax(-1), u)
        log = (self.log.logsumexp(-1, keepdim=True) - math.log(index.shape[-1])).expand_as(self.log)
        if where is not None:
            where = where.unsqueeze(-1)
            index = torch.where(where, index, torch.arange(index.shape[-1]))
            log = torch.where(where, log, self.log)
        self.log, self.phi = log, self.phi.gather(-1, index)
        return index

    def normalised(self) -> Tensor:
        """[..., n] adding up to 1."""
        return self.log.softmax(-1).float()


def spread(table: Tensor) -> Tensor:
    """Standard deviation of what is not NaN, [..., n] -> [..., 1]."""
    deviations = table - table.nanmean(-1, keepdim=True)
    return deviations.square().nanmean(-1, keepdim=True).sqrt().nan_to_num(0.0)


def effective(log_weights: Tensor) -> Tensor:
    """Effective sample size as a share, [..., n] -> [...] in [1/n, 1]: 1 where all weigh alike."""
    weights = log_weights.softmax(-1)
    return 1 / weights.square().sum(-1) / weights.shape[-1]


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """Indices drawn in proportion to weights: each floor(n w) or ceil(n w) times, n w on average.

    Args:
        weights: [..., n], adding up to 1.
        u: [..., 1] uniform in [0, 1).

    Returns:
        [..., n] in rising order.
    """
    n = weights.shape[-1]
    edges = weights.double().cumsum(-1)
    edges = edges / edges[..., -1:]
    points = (torch.arange(n) + u.double()) / n
    return torch.searchsorted(edges, points, right=True).clamp(max=n - 1)


def renoised(x: Tensor, x0: Tensor, level: Level, eta: float, noise: Tensor) -> Tensor:
    """x = alpha x0 + sigma eps with a part of its noise replaced, as much noise as before:

        alpha x0 + sqrt(sigma^2 - tau^2) eps + tau n,    tau = eta sigma

    Args:
        x: [n, ...] after a step that predicted `x0`.
        eta: 0 leaves x as it is; with 1 nothing but x0 is left of it.
        noise: n, [n, ...], standard normal.
    """
    kept = math.sqrt(1 - eta**2) * (x - level.alpha * x0)
    return level.alpha * x0 + kept + eta * level.sigma * noise
