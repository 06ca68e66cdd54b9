"""How real pictures look, and what they are truly worth: by the nearest of many that were drawn.

A generator that is pushed too far makes pictures that please a reward model and resemble nothing.
The distance to the nearest real picture shows it, and the true taste of that picture is a judgement
that no push can fool: a picture that is not real gets the taste of one that is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .shapes import Drawing, draw

REAL_SEED, OTHER_SEED = 5_000_000, 6_000_000  # no model has learnt from either


class Realism(NamedTuple):
    distance: Tensor  # [N] root mean square difference from the nearest real picture, 0 to 1
    taste: Tensor  # [N] the true taste of that picture


def real_pictures(count: int = 8192) -> Drawing:
    """The real pictures that others are compared with; always the same."""
    return draw(count, REAL_SEED)


def realism(images: Tensor, real: Drawing) -> Realism:
    """What the nearest real pictures say of images [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: images of another size than the real ones.
    """
    distance, index = nearest(images, real.images)
    return Realism(distance, real.attributes.taste()[index])


def real_realism(real: Drawing, count: int = 512) -> Realism:
    """The same of other real pictures: what a perfect generator would get."""
    return realism(draw(count, OTHER_SEED).images, real)


def nearest(images: Tensor, real: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Root mean square distances [N] to the nearest of `real` [K, ...], and which it is, [N].

    Args:
        chunk: images that are compared at once, which bounds the memory and nothing else.
    """
    if images.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"images are {list(images.shape[1:])}, the real ones {list(real.shape[1:])}"
        )
    if not len(images):
        return images.new_zeros(0), images.new_zeros(0, dtype=torch.long)
    flat, found = real.flatten(1), []
    for part in images.to(real).flatten(1).split(chunk):
        # To the nearest by a matrix product, which is fast; the distance itself exactly.
        index = (flat.square().sum(1) - 2 * part @ flat.T).argmin(1)  # [n]
        found.append(((part - flat[index]).square().mean(1).sqrt(), index))
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)
