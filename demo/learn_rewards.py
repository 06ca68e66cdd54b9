"""How the two embedded reward models learn the taste: by regression on pictures that none else sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rewards import NAMES, RewardScorer
from .shapes import draw

# Where each model's pictures begin: no two draws of the project's training share a seed.
FIRST_SEED = dict(zip(NAMES, (2_000_000, 3_000_000), strict=True))
TEST_SEED = 4_000_000


@dataclass(frozen=True)
class Settings:
    steps: int = 2000
    batch: int = 96
    rate: float = 3e-3  # peak learning rate
    noise: float = 0.2  # the largest deviation of the noise that they learn to look through
    blurred: float = 0.3  # share of the pictures that lose their detail
    seed: int = 0


def learn_reward(name: str, settings: Settings) -> RewardScorer:
    """The reward model; it depends on its name and the settings alone, up to rounding."""
    first = FIRST_SEED[name]
    torch.manual_seed(first + settings.seed)
    scorer = RewardScorer(name)

    def loss(step: int) -> Tensor:
        drawing = draw(settings.batch, seed=first + step)
        scores = scorer(as_previews(drawing.images, settings))
        return F.mse_loss(scores, drawing.attributes.taste())

    learn(scorer, loss, settings.steps, settings.rate, name)
    return scorer.freeze()


def learn(
    network: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float, name: str
) -> None:
    """Minimises `loss`, which is given the step's number, in the weights of the network."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for step in range(steps):
        now = loss(step)
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"{name}: step {step + 1} of {steps}, loss {now:.4f}", flush=True)


def as_previews(images: Tensor, settings: Settings) -> Tensor:
    """Pictures as they look while they form: noisy, and some of them blurred."""
    n, side = len(images), images.shape[-1]
    coarse = F.avg_pool2d(images, 4)
    blurred = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    images = torch.where(torch.rand(n, 1, 1, 1) < settings.blurred, blurred, images)
    noise = settings.noise * torch.rand(n, 1, 1, 1) * torch.randn(images.shape)
    return (images + noise).clamp(0, 1)


@torch.no_grad()
def correlation(scorer: RewardScorer, n: int = 2000, seed: int = TEST_SEED) -> float:
    """Of its scores with the truth, on pictures that no model has seen."""
    drawing = draw(n, seed)
    scores = torch.cat([scorer(batch) for batch in drawing.images.split(256)])
    return torch.corrcoef(torch.stack([scores, drawing.attributes.taste()]))[0, 1].item()
