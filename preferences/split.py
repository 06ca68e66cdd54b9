"""Parts of the comparisons that share no image: what was trained on never flatters a measurement.

Where images were compared across two parts, those comparisons belong to neither and are left out. To
leave out few, a part is grown from several images of random choice by adding the image that is tied
to it most and to the rest least; comparisons that hang together with no others stay whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons

SEEDS = 16  # starting points of a part: it must not be one corner of what was compared


class Split(NamedTuple):
    """Comparisons to train on, to test on, and how many lie between the two and were left out."""

    train: Comparisons
    test: Comparisons
    dropped: int


def split(comparisons: Comparisons, fraction: float = 0.1, seed: int = 0) -> Split:
    """Sets `fraction` of the comparisons apart, so that no image is in both parts. Deterministic.

    Raises:
        ValueError: a fraction outside (0, 1), or comparisons that cannot be divided so: all of them
            share an image, say.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the share to set apart must be above 0 and below 1, got {fraction}")
    grow = _Growth(comparisons, seed)
    part = grow(lambda images, inside: inside >= fraction * len(comparisons))
    inside = _among(comparisons, part).all(1)
    counts = _among(comparisons, comparisons.pairs[inside].unique()).sum(1)  # [P] in the test
    train, test = comparisons.take(counts == 0), comparisons.take(counts == 2)
    if not len(train) or not len(test):
        raise ValueError(
            f"{len(comparisons)} comparisons of {len(comparisons.images)} images cannot be divided "
            "so that no image is in both parts: compare more images, or give a test of your own"
        )
    return Split(train, test, int((counts == 1).sum()))


def folds(
    comparisons: Comparisons, k: int = 5, repeats: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Divides the images into k groups, `repeats` times; each is the test of one fold.

    Returns:
        What each of the F = k * repeats folds trains on and what it tests, both bool [P, F].
    """
    if k < 2:
        raise ValueError(f"there must be at least 2 folds, got {k}")
    train, test = [], []
    for repeat in range(repeats):
        groups = _groups(comparisons, k, seed + repeat)[comparisons.pairs]  # [P, 2]
        for group in range(k):
            inside = (groups == group).sum(1)
            train.append(inside == 0)
            test.append(inside == 2)
    return torch.stack(train, 1), torch.stack(test, 1)


def _groups(comparisons: Comparisons, k: int, seed: int) -> Tensor:
    """[N] int64, the group of each image: k groups of about as many images."""
    grow = _Growth(comparisons, seed)
    n = len(comparisons.images)
    groups = torch.full((n,), k - 1)
    for group in range(k - 1):
        groups[grow(lambda images, _: images >= n // k)] = group
    return groups


def _among(comparisons: Comparisons, images: list[int] | Tensor) -> Tensor:
    """[P, 2] bool: whether the left, and the right, is one of `images`."""
    member = torch.zeros(len(comparisons.images), dtype=torch.bool)
    member[torch.as_tensor(images, dtype=torch.int64)] = True
    return member[comparisons.pairs]


class _Growth:
    """Grows parts of the images, one after the other; an image is in one part at most."""

    def __init__(self, comparisons: Comparisons, seed: int):
        n = len(comparisons.images)
        self.near: list[list[int]] = [[] for _ in range(n)]
        for a, b in comparisons.pairs.tolist():
            if a != b:
                self.near[a].append(b)
                self.near[b].append(a)
        generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(n, generator=generator).tolist()  # who starts, and breaks ties
        self.place = {image: i for i, image in enumerate(self.order)}
        self.taken: set[int] = set()

    def __call__(self, enough: Callable[[int, int], bool]) -> list[int]:
        """Adds images until `enough(images, comparisons inside)`, or until there are none."""
        part: set[int] = set()
        inside = 0
        free = [image for image in self.order if image not in self.taken]
        starts = iter(free)
        heap: list[tuple[int, int, int]] = []  # (what it would cut more, tie, image); lazily old
        while len(part) < len(free) and not enough(len(part), inside):
            image = self._best(heap, part) if len(part) >= min(SEEDS, len(free) // 32 + 1) else None
            if image is None:
                image = next(each for each in starts if each not in part)
            part.add(image)
            inside += sum(other in part for other in self.near[image])
            for other in set(self.near[image]) - part - self.taken:
                heapq.heappush(heap, (self._cut(other, part), self.place[other], other))
        self.taken |= part
        return list(part)

    def _best(self, heap: list, part: set[int]) -> int | None:
        while heap:
            cut, _, image = heapq.heappop(heap)
            if image not in part and cut == self._cut(image, part):
                return image
        return None

    def _cut(self, image: int, part: set[int]) -> int:
        """How many more comparisons would cross the part's border if the image joined it."""
        free = [other for other in self.near[image] if other not in self.taken]
        return len(free) - 2 * sum(other in part for other in free)
