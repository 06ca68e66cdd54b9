"""Comparisons as batches of pictures, and a scorer's loss on them.

Which comparisons a batch holds depends on the seed and the batch's number alone, so training can go
on anywhere. Pictures are decoded ahead, each once a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..scorers.base import Scorer
from ..scorers.stream import decode_ahead
from .comparisons import Comparisons
from .head import bradley_terry


class Batch(NamedTuple):
    """Comparisons and the pictures that they compare, each once."""

    pictures: list[Tensor]  # uint8 [3, H, W]
    pairs: Tensor  # int64 [b, 2], indices into `pictures`: left, right
    p: Tensor  # float32 [b]


def batches(
    train: Comparisons, scorer: Scorer, size: int, seed: int, numbers: range
) -> Generator[Batch, None, None]:
    """The batches of these numbers, of `size` comparisons each.

    Raises:
        FileNotFoundError, ValueError: naming a picture that cannot be read.
    """
    plans, ahead = tee(_plan(train, size, seed, number) for number in numbers)
    stream = decode_ahead((path for paths, _, _ in ahead for path in paths), scorer)
    for paths, pairs, p in plans:
        yield Batch(_take(stream, len(paths)), pairs, p)


def order(total: int, first: int, count: int, seed: int) -> np.ndarray:
    """Which of `total` comparisons come at positions `first` to `first + count`, int64 [count].

    Every pass over the comparisons is in another order, which depends on the seed and the pass alone.
    """
    passes, places = np.divmod(np.arange(first, first + count), total)
    orders = {n: np.random.default_rng([seed, n]).permutation(total) for n in set(passes.tolist())}
    return np.array([orders[n][place] for n, place in zip(passes, places, strict=True)])


def batch_loss(scorer: Scorer, batch: Batch) -> Tensor:
    """The mean loss of a batch's comparisons, float32."""
    left, right = scores_of(scorer, batch.pictures)[batch.pairs.to(scorer.device)].unbind(1)
    return bradley_terry(left - right, batch.p.to(scorer.device)).mean()


def scores_of(scorer: Scorer, pictures: Sequence[Tensor]) -> Tensor:
    """Pictures [3, H, W] of any sizes to scores [N] float32, with gradients into the weights.

    Those of which the model sees one size are scored together.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        groups[scorer.input_size(*picture.shape[1:])].append(i)
    order, scores = [], []
    for indices in groups.values():
        with torch.autocast(scorer.device.type, enabled=False):  # resizing is exact, in float32
            prepared = [scorer.prepare(pictures[i][None].to(scorer.device)) for i in indices]
        scores.append(scorer.score_prepared(torch.cat(prepared)))
        order += indices
    return torch.cat(scores)[torch.tensor(order).argsort().to(scorer.device)]


@torch.no_grad()
def scores_of_files(scorer: Scorer, images: Sequence[Path], together: int) -> Tensor:
    """Picture files to scores [N] float64 on the CPU, `together` at a time."""
    scores, stream = [], decode_ahead(images, scorer)
    for first in range(0, len(images), together):
        pictures = _take(stream, min(together, len(images) - first))
        scores.append(scores_of(scorer, pictures).cpu())
    return torch.cat(scores).double()


def held_out_loss(scorer: Scorer, test: Comparisons, together: int) -> float:
    """The mean loss of comparisons, each of whose images is scored once."""
    left, right = scores_of_files(scorer, test.images, together)[test.pairs].unbind(1)
    return bradley_terry(left - right, test.p).mean().item()


def _plan(
    train: Comparisons, size: int, seed: int, number: int
) -> tuple[list[Path], Tensor, Tensor]:
    """The images, pairs and p of one batch."""
    chosen = torch.from_numpy(order(len(train), number * size, size, seed))
    used, pairs = train.pairs[chosen].unique(return_inverse=True)
    return [train.images[i] for i in used.tolist()], pairs, train.p[chosen].float()


def _take(stream: Iterator[tuple[Any, Tensor | Exception]], count: int) -> list[Tensor]:
    """The next pictures of a stream; raises what one of them raised."""
    pictures = [next(stream)[1] for _ in range(count)]
    for picture in pictures:
        if isinstance(picture, Exception):
            raise picture
    return pictures
