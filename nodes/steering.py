"""One run of Particle Sampler: weights, copies, and the record of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_sampling
import torch
from torch import Tensor

from ..guidance.record import Record, Row
from ..guidance.resample import Weights, effective, renoised
from ..guidance.rewards import rate
from ..guidance.schedulers import Level
from .guided import decoder, noise_ratio_of
from .managed import ManagedScorer
from .sampling import SEEDS

PART = 4  # previews that are decoded and scored at a time


class Options(NamedTuple):
    """What is steered by, and how.

    Args:
        at: shares of the steps after which particles are weighed.
        held_out: only watches.
        prompt: of all particles, for scorers that read it; "" where it is not known.
    """

    scorer: ManagedScorer
    vae: Any
    held_out: ManagedScorer | None
    prompt: str
    strength: float
    eta: float
    ess: float
    at: list[float]


class Steering:
    """One run's weights.

    Args:
        seed: of the resampling and of the copies' noise.
    """

    def __init__(self, how: Options, guider: Any, seed: int):
        self.how, self.weights, self.record = how, Weights(how.strength), Record()
        self.generator = torch.Generator().manual_seed(seed % SEEDS)
        latent_format = guider.model_patcher.get_model_object("latent_format")
        self.decode = decoder(latent_format, how.vae)
        self.sampling = guider.inner_model.model_sampling

    def add(self, x: Tensor, sigma: float) -> Row:
        """A row of the record for a step from this noise."""
        ratio = noise_ratio_of(self.sampling, sigma)
        self.record.rows.append(Row(len(self.record.rows), sigma, ratio))
        self.record.denoiser_calls += len(x)
        return self.record.rows[-1]

    def resampled(self, x: Tensor, x0: Tensor, sigma: float, row: Row) -> Tensor:
        """x [n, ...] at this noise, or copies of the better ones, each with new noise."""
        self._judge(x0, row)
        self.weights.update(row.reward[None])
        row.ess = float(effective(self.weights.log))
        if row.ess >= self.how.ess:
            return x
        index = self.weights.resample(torch.rand(1, generator=self.generator))
        row.ancestors = index.tolist()
        index = index.to(x.device)
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        flow = isinstance(self.sampling, comfy.model_sampling.CONST)
        level = Level(1 - sigma if flow else 1.0, sigma)
        return renoised(x[index], x0[index], level, self.how.eta, noise)

    def order(self, x0: Tensor, row: Row) -> Tensor:
        """Indices [n], best first; those without a score last."""
        self._judge(x0, row)
        scores = row.reward.nan_to_num(-torch.inf)
        return scores.argsort(descending=True, stable=True).to(x0.device)

    def _judge(self, x0: Tensor, row: Row) -> None:
        """Scores [n] into the row."""
        scorers = [each.scorer for each in (self.how.scorer, self.how.held_out) if each]
        prompts = [self.how.prompt] if self.how.prompt else []
        found: list[list[Tensor]] = [[] for _ in scorers]
        for part in x0.float().split(PART):
            pixels = self.decode(part)
            for scorer, scores in zip(scorers, found, strict=True):
                scores.append(rate(scorer, pixels, prompts * len(part)).cpu())
        row.reward, *others = map(torch.cat, found)
        row.held_out = others[0] if others else None
        self.record.scorer_calls += len(scorers) * len(x0)


def told(record: Record) -> str:
    """What steering did, in a few sentences."""
    rows = [row for row in record.rows if row.reward is not None]
    weighed = [row for row in rows if row.ess is not None]
    if not weighed:
        return "Nothing was steered."
    copied = [row for row in weighed if row.ancestors is not None]
    origins = list(range(len(rows[0].reward)))
    for row in copied:
        origins = [origins[i] for i in row.ancestors]
    lines = [
        f"Weighed {len(weighed)} times in {len(record.rows)} steps, copied {len(copied)} times: the "
        f"images descend from {len(set(origins))} of {len(origins)}.",
        f"The mean score of the forming images went from {_mean(rows[0].reward)} to "
        f"{_mean(rows[-1].reward)}.",
    ]
    if rows[0].held_out is not None:
        lines.append(f"Held out: {_mean(rows[0].held_out)} to {_mean(rows[-1].held_out)}.")
    return " ".join(lines)


def _mean(scores: Tensor) -> str:
    return f"{float(scores.nanmean()):.4g}"
