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
        """What the run did that made these latents; None if it is not among the last."""
        for made, record in reversed(self._last):
            if made.shape == samples.shape and torch.equal(made.to(samples), samples):
                return record
        return None
