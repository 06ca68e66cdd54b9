"""Comparisons of images: who was preferred to whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparisons:
    """P comparisons of N images.

    Attributes:
        images: the N images, each once.
        pairs: [P, 2] int64, indices into `images`: left, right.
        p: [P] float64, the probability that the left one is preferred: of a vote 1, 0.5 (a tie)
            or 0.
    """

    images: tuple[Path, ...]
    pairs: Tensor
    p: Tensor

    def __post_init__(self):
        if self.pairs.dtype != torch.int64 or self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"pairs must be int64 [P, 2], got {list(self.pairs.shape)}")
        if self.p.shape != self.pairs.shape[:1]:
            raise ValueError(f"p must be [{len(self.pairs)}], got {list(self.p.shape)}")

    def __len__(self) -> int:
        return len(self.pairs)
