"""What the last sampling runs did, kept for Guidance Report."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..guidance.record import Record

REMEMBERED = 8  # a graph may sample the same MODEL several times, and report on each


class Runs:
    """The records of the last runs, each found again by the latents that it made."""

    def __init__(self):
        self._last: deque[tuple[Tensor, Record]] = deque(maxlen=REMEMBERED)

    def keep(self, samples: Tensor, record: Record) -> None:
        """To be called with the latents as the sampling node gives them."""
        self._last.append((samples.cpu(), record))

    def record_of(self, samples: Tensor) -> Record | None:
        """What the last run did that made these latents, be they all of its own or some, in any order.

        None if it is not among those remembered.
        """
        for made, record in reversed(self._last):
            if _all_of(samples, made):
                return record
        return None


def _all_of(samples: Tensor, made: Tensor) -> bool:
    """Whether each of the samples [K, ...] is among those made [N, ...]."""
    if not len(samples) or made.shape[1:] != samples.shape[1:]:
        return False
    made = made.to(samples)
    return all(any(torch.equal(one, other) for other in made) for one in samples)
