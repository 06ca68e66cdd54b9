"""A scorer without a network, for tests of what surrounds one."""

import torch

from tastemaker.scorers import Scorer, ScorerCard


class Brightness(Scorer):
    """The mean of the pixels, times one frozen weight; the model sees the picture's own size."""

    def __init__(self, size: tuple[int, int] | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.size = size
        self.batches: list[tuple[int, ...]] = []
        self._card = ScorerCard(
            name="brightness",
            licence="Apache-2.0",
            unit="mean pixel",
            range=(0.0, 1.0),
            fingerprint={"weights": "stub"},
        )
        self.freeze()

    def input_size(self, height, width):
        return self.size or (height, width)

    def score_prepared(self, x):
        self.batches.append(tuple(x.shape))
        return (x.mean((1, 2, 3)) * self.weight).float()
