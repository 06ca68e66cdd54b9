"""What the voting page learns: a head on a base scorer's features, and which pairs would teach it most.

The features of a picture are the base's own score, then what the base's head reads. How much the
base's score counts is fitted alone first, and what is known beforehand of the rest is nothing: so
the first votes weigh the base, and the more there are, the more they may deviate from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .embeddings import embed_images
from .head import PENALTIES, Space, cross_validate, fit_head
from .suggest import posterior, suggest_pairs

FEWEST = 20  # votes, before which the penalty is not chosen by cross-validation
FIRST_PENALTY = 0.1  # until then
AGAIN = 1.25  # the penalty is chosen anew when there are so many times as many votes
WEAK = 0.01  # penalty of the base's weight alone
SUGGESTED = 16  # pairs at a time


class Fit(NamedTuple):
    """A fit in standardised features: the space of the embeddings, the score's deviation, w."""

    space: Space
    deviation: Tensor
    w: Tensor  # [1 + D]
    penalty: float

    def standardised(self, x: Tensor) -> Tensor:
        """[N, 1 + D]"""
        return torch.cat([x[:, :1] / self.deviation, self.space(x[:, 1:])], dim=1)

    def raw(self) -> Tensor:
        """The weight [1 + D] of the features as they are."""
        return torch.cat([self.w[:1] / self.deviation, self.space.weight(self.w[1:])])


class HeadModel:
    """`learning.Model` on a base scorer that has an embedding."""

    def __init__(self, base: str):
        from ..scorers import load_scorer
        from ..scorers.personal import require_features

        self._scorer = load_scorer(base)
        require_features(self._scorer)
        self._penalty, self._chosen_at = FIRST_PENALTY, FEWEST / AGAIN
        self._fit: Fit | None = None
        self.w0 = torch.tensor([1.0])  # of the score; the embedding's size shows with the first one

    def embed(self, paths: Sequence[Path]) -> Tensor:
        """[N, 1 + D] float64."""
        from ..scorers.personal import score_features

        embeddings = embed_images(self._scorer, paths)
        with torch.no_grad():
            scores = score_features(self._scorer, embeddings.to(self._scorer.device)).cpu()
        x = torch.cat([scores[:, None].double(), embeddings.double()], dim=1)
        self.w0 = torch.zeros(x.shape[1], dtype=torch.float64).index_fill_(0, torch.tensor(0), 1)
        return x

    def fit(self, x: Tensor, pairs: Tensor, p: Tensor) -> Tensor:
        """The weight [1 + D] of the features."""
        deviation = x[:, 0].std(correction=0).clamp(min=1e-6)
        fit = Fit(Space.of(x[:, 1:]), deviation, torch.zeros(0), self._penalty)
        z = fit.standardised(x)
        difference = z[pairs[:, 0]] - z[pairs[:, 1]]  # [P, 1 + D]
        gain = fit_head(difference[:, :1], p, torch.zeros(1), WEAK).clamp(min=0)
        w0 = torch.zeros(z.shape[1], dtype=torch.float64)
        w0[0] = gain.item()
        self._choose_penalty(difference, w0, pairs, p, len(x))
        w = fit_head(difference, p, w0, self._penalty)
        self._fit = fit._replace(w=w, penalty=self._penalty)
        return self._fit.raw()

    def suggest(self, x: Tensor, pairs: Tensor, p: Tensor, w: Tensor) -> list[tuple[int, int]]:
        """Pairs that are worth most after the last fit, as `suggest_pairs` finds them."""
        z = self._fit.standardised(x)
        penalty = min(self._fit.penalty, max(filter(math.isfinite, PENALTIES)))
        known = posterior(z[pairs[:, 0]] - z[pairs[:, 1]], self._fit.w, penalty)
        found = suggest_pairs(z, known, SUGGESTED, compared=pairs, seed=len(pairs))
        return [(i, j) for i, j in found.tolist()]

    def _choose_penalty(
        self, difference: Tensor, w0: Tensor, pairs: Tensor, p: Tensor, n: int
    ) -> None:
        if len(p) < AGAIN * self._chosen_at:
            return
        names = tuple(Path(str(i)) for i in range(n))  # only who was compared with whom matters
        comparisons = Comparisons(names, pairs, p)
        self._penalty = cross_validate(difference, w0, comparisons).penalty
        self._chosen_at = len(p)
