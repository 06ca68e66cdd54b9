"""Two small scorers with one taste, learnt apart: one to guide by, the other to see what that is worth.

They like what `shapes.Attributes.taste` measures: a warm, large shape in the middle, whatever its
ground. They differ in architecture, initial weights and every picture that they have seen, so what
one of them is fooled by need not fool the other. Made by `python -m tastemaker.demo.train`.
Licence Apache-2.0, like the code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..scorers.base import Scorer, ScorerCard
from ..scorers.checkpoint import load_exactly, read_weights, weights_digest
from .shapes import SIDE

WEIGHTS = Path(__file__).with_name("weights")
NAMES = ("guiding", "held-out")


class RewardScorer(Scorer):
    """[B, 3, H, W] in [0, 1] -> [B]: the taste that a network sees in pictures, resized to 32 px."""

    def __init__(self, name: str):
        super().__init__()
        self.network = _convolutions() if name == "guiding" else _Mixer()
        self._card = ScorerCard(
            name=f"demo-{name}",
            licence="Apache-2.0",
            unit="warmth, size and centring of the shape; drawn pictures: mean 0, deviation 0.5",
            range=(float("-inf"), float("inf")),
            tasks=("taste",),
            task="taste",
            capabilities=("differentiable",),
            limits="Knows pictures of one coloured shape only, as `tastemaker.demo.shapes` draws.",
            out_of_scope="Every other picture.",
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return SIDE, SIDE

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.network((2 * x - 1).to(self.dtype))[:, 0].float()


def _convolutions() -> nn.Sequential:
    """Three halvings, then a look at the whole."""
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 4, 2, 1), nn.GELU()),
        *(nn.Conv2d(24, 40, 3, 2, 1), nn.GELU()),
        *(nn.Conv2d(40, 64, 3, 2, 1), nn.GELU()),
        *(nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, 48), nn.GELU(), nn.Linear(48, 1)),
    )


class _Mixer(nn.Module):
    """Patches that are mixed across places and across channels in turn (Tolstikhin et al. 2021)."""

    def __init__(self, patch: int = 4, width: int = 48, blocks: int = 3):
        super().__init__()
        places = (SIDE // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.across = nn.ModuleList(_perceptron(places, places) for _ in range(blocks))
        self.within = nn.ModuleList(_perceptron(width, 2 * width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Flatten(), nn.Linear(width * places, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)  # [B, width, places]
        for across, within in zip(self.across, self.within, strict=True):
            x = x + across(x)
            x = x + within(x.mT).mT
        return self.head(x.mT)


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    layers = nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)
    return nn.Sequential(nn.LayerNorm(width), *layers)


def load_reward(name: str, device: torch.device | str | None = None) -> RewardScorer:
    """One of the embedded reward models, on the CPU unless told otherwise.

    Args:
        name: "guiding" or "held-out".

    Raises:
        ValueError: another name, or weights that are damaged.
    """
    if name not in NAMES:
        raise ValueError(f"the embedded reward models are {' and '.join(NAMES)}, not {name!r}")
    file = weights_file(name)
    scorer, state = RewardScorer(name), read_weights([file])
    load_exactly(scorer, state, file)
    fingerprint = {"weights": weights_digest(state), "preprocessing": f"{SIDE} px"}
    scorer._card = replace(scorer._card, fingerprint=fingerprint)
    return scorer.to(device or "cpu").freeze()


def weights_file(name: str) -> Path:
    return WEIGHTS / f"reward-{name}.safetensors"
