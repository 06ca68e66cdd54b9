"""How often a scorer puts an original above its corrupted copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from torch import Tensor

from ..scorers import Scorer
from ..scorers.corruptions import CORRUPTIONS, NotCompressible
from .pictures import Picture


@dataclass
class Judgement:
    """The originals' scores [N], and for each corruption the scores of pairs [P, 2]: original, copy."""

    originals: list[float] = field(default_factory=list)
    pairs: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: {kind: [] for kind in CORRUPTIONS}
    )

    def accuracy(self, kind: str) -> float:
        """Share of pairs in which the original scores strictly higher."""
        return float(np.mean([original > copy for original, copy in self.pairs[kind]]))

    def drop(self, kind: str) -> float:
        """Median fall of the score from original to copy."""
        return float(np.median([original - copy for original, copy in self.pairs[kind]]))

    def across(self, kind: str) -> float:
        """Share of all (original, copy of any picture) that rank the original higher: the AUC."""
        originals, copies = np.array(self.originals), np.array(self.pairs[kind])[:, 1]
        return float((originals[:, None] > copies).mean())


def judge(
    scorer: Scorer, pictures: Sequence[Picture], draws: int, kinds: Iterable[str] = CORRUPTIONS
) -> Judgement:
    """Scores every picture at native resolution, and `draws` random corruptions of each kind.

    JPEG has no randomness, so it makes one pair; pictures that no JPEG quality brings to a third
    of their size make none.
    """
    result = Judgement()
    for picture in pictures:
        original = _score(scorer, picture.pixels)
        result.originals.append(original)
        for kind in kinds:
            for draw in range(1 if kind == "jpeg" else draws):
                try:
                    copy = CORRUPTIONS[kind](picture.pixels, Random(f"{picture.name}:{draw}"))
                except NotCompressible:
                    continue
                result.pairs[kind].append((original, _score(scorer, copy)))
    return result


@torch.no_grad()
def _score(scorer: Scorer, pixels: np.ndarray) -> float:
    return scorer(as_tensor(pixels)[None]).item()


def as_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] to floating point [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255
