"""What the voting page learns: a taste as `train` fits it, and which pairs would teach it most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .comparisons import Comparisons
from .embeddings import base_scores, embed_images
from .suggest import suggest_for
from .taste import Taste, fit_taste
from .weighing import PENALTIES

FEWEST = 20  # votes, before which penalties are not cross-validated
FIRST_PENALTY = 0.1  # until then
AGAIN = 1.25  # penalties are weighed anew when there are so many times as many votes
SUGGESTED = 16  # pairs at a time


class HeadModel:
    """`learning.Model` on a base scorer that has an embedding.

    The features of a picture are the base's own score, then what the base's head reads.
    """

    def __init__(self, base: str):
        from ..scorers import load_scorer
        from ..scorers.personal import require_features

        self._scorer = load_scorer(base)
        require_features(self._scorer)
        self._weighed: Taste | None = None
        self._weighed_at = FEWEST / AGAIN
        self._taste: Taste | None = None
        self.w0 = torch.tensor([1.0])  # of the score; the embedding's size shows with the first one

    def embed(self, paths: Sequence[Path]) -> Tensor:
        """[N, 1 + D] float32, as the embeddings are."""
        embeddings = embed_images(self._scorer, paths)
        scores = base_scores(self._scorer, embeddings)
        x = torch.cat([scores[:, None].float(), embeddings.float()], dim=1)
        self.w0 = torch.zeros(x.shape[1], dtype=torch.float64).index_fill_(0, torch.tensor(0), 1)
        return x

    def fit(self, x: Tensor, pairs: Tensor, p: Tensor) -> Tensor:
        """The weight [1 + D] of the features; the base's own where no two pictures differ."""
        self._taste = None
        if bool((x == x[0]).all()):
            return self.w0
        # Their names do not matter, only who was compared with whom.
        names = tuple(Path(str(i)) for i in range(len(x)))
        comparisons = Comparisons(names, pairs, p)
        due = len(p) >= AGAIN * self._weighed_at
        like = None if due else self._weighed
        penalties = PENALTIES if due else (FIRST_PENALTY,)
        how = {"penalties": penalties, "like": like, "prior": self._scorer.head_prior}
        self._taste = fit_taste(x[:, 1:], x[:, 0], comparisons, **how)
        if due:
            self._weighed, self._weighed_at = self._taste, len(p)
        return torch.cat([torch.tensor([self._taste.gain]).double(), self._taste.weight])

    def suggest(self, x: Tensor, pairs: Tensor, p: Tensor, w: Tensor) -> list[tuple[int, int]]:
        """Pairs that are worth most after the last fit, as `suggest_pairs` finds them."""
        if self._taste is None:
            return []
        found = suggest_for(self._taste, x[:, 1:], x[:, 0], pairs, SUGGESTED, seed=len(pairs))
        return [(i, j) for i, j in found.tolist()]
