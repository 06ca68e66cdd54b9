"""What a run did, step by step, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .tap import Step


@dataclass
class Row:
    """One call of the denoiser; what was not measured is None."""

    index: int
    sigma: float  # in the scheduler's unit
    noise_ratio: float  # 1 noise, 0 clean
    reward: Tensor | None = None  # [B] of the predicted x0, before the push
    held_out: Tensor | None = None  # [B]
    push: Tensor | None = None  # [B] root mean square of the displacement of x0
    gain: float | None = None  # mean guiding reward that the pushes so far have added
    held_out_gain: float | None = None
    survivors: list[int] | None = None  # candidates that are still being sampled


@dataclass
class Record:
    """The steps of one run."""

    rows: list[Row] = field(default_factory=list)
    denoiser_calls: int = 0  # samples times calls, guidance (CFG) not counted twice
    scorer_calls: int = 0
    gap: bool = False  # the held-out reward fell while the guiding one rose
    stopped: bool = False  # guidance was stopped for it

    def add(self, step: Step) -> Row:
        self.rows.append(Row(step.index, step.sigma, step.noise_ratio))
        self.denoiser_calls += len(step.x0)
        return self.rows[-1]
