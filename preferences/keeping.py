"""What a base knows and a taste must not forget: that a picture is better than its spoiled copy.

Comparisons seldom say anything about compression and lost resolution, so a head that is fitted to
them alone may come to like either. JoyQuality watches over that with two tasks (`robustness.py`);
here the same copies of some of the compared pictures take part in the fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor

from ..scorers import Scorer
from ..scorers.corruptions import CORRUPTIONS, NotCompressible
from ..scorers.decode import read_picture
from ..scorers.personal import score_features
from .embeddings import content_of, embed_images
from .robustness import TASKS
from .taste import Kept

PICTURES = 256  # more hardly changed what was kept
AT_ONCE = 16  # copies in memory


@torch.no_grad()
def kept_copies(scorer: Scorer, images: Sequence[Path], seed: int = 0) -> Kept:
    """JPEG and low-resolution copies of at most 256 of the images, where the scorer puts them below.

    A picture's copies depend on its contents alone; which pictures are taken, on the seed.
    """
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:PICTURES]
    chosen = [images[i] for i in drawn.tolist()]
    which, parts = [], []
    made = _copies(chosen)
    while some := list(islice(made, AT_ONCE)):
        which += [i for i, _ in some]
        parts.append(embed_images(scorer, [copy for _, copy in some], cache=False))
    originals = embed_images(scorer, chosen)
    better = originals[which]
    worse = torch.cat(parts) if parts else better
    above, below = _scores(scorer, better), _scores(scorer, worse)
    right = above > below
    return Kept(better[right], worse[right], above[right], below[right])


def _copies(paths: Sequence[Path]) -> Iterator[tuple[int, Image.Image]]:
    """Which picture, and a spoiled copy of it."""
    for i, path in enumerate(paths):
        picture = Image.fromarray(read_picture(path).permute(1, 2, 0).numpy())
        for kind in TASKS:
            try:
                yield i, CORRUPTIONS[kind](picture, Random(f"{kind}:{content_of(path).hex()}"))
            except NotCompressible:
                continue


def _scores(scorer: Scorer, embeddings: Tensor) -> Tensor:
    """[A] float64 of embeddings [A, D]."""
    return score_features(scorer, embeddings.to(scorer.device)).double().cpu()
