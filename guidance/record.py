"""What a run did, step by step, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

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
    gain: float | None = None  # mean guiding reward that the run's pushes so far have added
    held_out_gain: float | None = None  # both over the samples that have both rewards
    ess: float | None = None  # of particles: effective share of them, in (0, 1], before resampling
    ancestors: list[int] | None = None  # of particles: whom each one goes on from
    left: float | None = None  # of candidates that are pruned: the share that goes on


@dataclass
class Record:
    """The steps of one run."""

    rows: list[Row] = field(default_factory=list)
    denoiser_calls: int = 0  # times samples; CFG is not counted twice
    scorer_calls: int = 0
    survivors: list[list[int]] = field(default_factory=list)  # candidates left after each cut
    gap: bool = False  # the held-out reward fell while the guiding one rose, in one of the runs
    stopped: bool = False  # guidance was stopped for it, until that run ended
    across: str = "call of the denoiser"  # what the rows' indices count

    def plot(self, title: str = "reward") -> Image.Image:
        """The mean reward, and the held-out one, of every measured step's preview, as a picture.

        Below it, where particles were weighed or candidates dropped, what is left of them.

        ValueError if nothing was measured.
        """
        from .picture import picture

        return picture(self, title)

    def add(self, step: Step) -> Row:
        self.rows.append(Row(step.index, step.sigma, step.noise_ratio))
        self.denoiser_calls += len(step.x0)
        return self.rows[-1]


def summary(record: Record) -> str:
    """What guidance did, in a sentence or two."""
    guided = [row for row in record.rows if row.reward is not None]
    if not guided:
        return "Nothing was guided."
    first, last = (mean(row.reward) for row in (guided[0], guided[-1]))
    told = [
        f"Guided {len(guided)} of {len(record.rows)} steps; the score of the forming image went from "
        f"{first:.4g} to {last:.4g}."
    ]
    gains = [(row.gain, row.held_out_gain) for row in guided if row.gain is not None]
    if gains:
        told.append(
            "The pushes added {:+.3g}, and {:+.3g} to the held-out score.".format(*gains[-1])
        )
    if record.gap:
        told.append("The two went apart, a sign of reward hacking: use less strength.")
    if record.stopped:
        told.append("Guidance was stopped for it.")
    return " ".join(told)


def mean(rewards: Tensor) -> float:
    """Of those that are numbers; nan where none is."""
    return float(rewards[rewards.isfinite()].mean())


@dataclass
class SearchResult:
    """What a search kept, best first, and what it did."""

    images: list[Any]  # PIL pictures; of videos, lists of frames
    scores: Tensor  # [K]; of several scorers, their mean percentile among those that were finished
    seeds: list[int]  # of generators on the CPU: they make the same images again
    prompts: list[str | None]
    latents: Tensor | None  # [K, ...] as the pipeline decoded them
    held_out: Tensor | None  # [K] scores of the scorer that did not choose
    all_scores: Tensor  # [N] of all candidates, in their order
    all_seeds: list[int]
    record: Record
    weights: Tensor | None = (
        None  # [N] of particles, adding up to 1: images distributed as exp(lam r)
    )
    noise: Tensor | None = None  # [K, ...] the pipeline's `latents=` of a search among noises

    @classmethod
    def join(cls, parts: Sequence[SearchResult], record: Record) -> SearchResult:
        """The results of several prompts, one after the other."""

        def tensors(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if any(value is None for value in found) else torch.cat(found)

        def lists(name: str) -> list:
            return [value for part in parts for value in getattr(part, name)]

        of_tensors = ("scores", "latents", "held_out", "all_scores", "weights", "noise")
        of_lists = ("images", "seeds", "prompts", "all_seeds")
        return cls(
            **{name: tensors(name) for name in of_tensors},
            **{name: lists(name) for name in of_lists},
            record=record,
        )
