"""What a base knows and a taste must not forget: that a picture is better than its spoiled copy.

Comparisons seldom say anything about compression and lost resolution, so a head that is fitted to
them alone may come to like either. JoyQuality watches over that with two tasks (`robustness.py`);
here the same copies of some of the compared pictures take part in the fit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ..scorers import Scorer
from ..scorers.corruptions import CORRUPTIONS, NotCompressible
from ..scorers.decode import read_picture
from .embeddings import Progress, base_scores, contents_of, embed_images, embed_made
from .robustness import TASKS
from .taste import Kept

PICTURES = 1024  # of fewer, what is kept does not hold for others where many were compared
KNOWN = 2 / 3  # share of the pairs that a scorer has right of what it knows; less may be chance


def kept_copies(
    scorer: Scorer,
    images: Sequence[Path],
    seed: int = 0,
    cache: bool | str | os.PathLike = True,
    progress: bool | Progress = False,
) -> Kept:
    """JPEG and low-resolution copies of at most 1,024 of the images, where the scorer puts them below.

    None of a kind of which it has less than two in three right: that it does not know.
    A picture's copies depend on its contents alone; which pictures are taken, on the seed.

    Args:
        cache, progress: as in `embed_images`.
    """
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:PICTURES]
    chosen = [images[i] for i in drawn.tolist()]
    originals = embed_images(scorer, chosen, cache)
    contents = contents_of(scorer, chosen, cache)
    copies = [_copies(path, content) for path, content in zip(chosen, contents, strict=True)]
    made = {key: make for own in copies for key, make in own.items()}
    embedded = embed_made(scorer, made, cache, progress)
    n, width = originals.shape
    worse = torch.stack([embedded[key] for own in copies for key in own])
    worse = worse.reshape(n, len(TASKS), width)
    above, below = base_scores(scorer, originals)[:, None], base_scores(scorer, worse)
    right = above > below  # [N, kinds]
    right &= right.double().mean(0) >= KNOWN
    which = right.nonzero()[:, 0]
    return Kept(originals[which], worse[right], above[which, 0], below[right])


def _copies(path: Path, content: bytes) -> dict[bytes, Callable[[], Image.Image]]:
    """A picture's spoiled copies, made where they are asked for, by what tells them apart."""

    def make(kind: str) -> Image.Image:
        picture = _opened(path)
        try:
            return CORRUPTIONS[kind](picture, Random(f"{kind}:{content.hex()}"))
        except NotCompressible:
            return picture  # equal to itself, it teaches nothing

    keys = {
        kind: hashlib.blake2b(content + kind.encode(), digest_size=16).digest() for kind in TASKS
    }
    return {key: lambda kind=kind: make(kind) for kind, key in keys.items()}


@lru_cache(maxsize=1)  # its copies are made one after the other
def _opened(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path).permute(1, 2, 0).numpy())
