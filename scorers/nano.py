"""Nano: the embedded judge of technical quality.

There is no paper and nothing to download: a convolutional network of a fifth of a million
parameters, trained by `training/nano.py` on corrupted copies of AI-generated pictures; its weights
are `weights/nano.safetensors` beside this file. Licence Apache-2.0, like the code.

Range: unbounded; clean pictures it never saw score 0 on average, with a standard deviation of 1.
Direction: higher is better; the probability that A beats B is sigmoid(score_A - score_B).

It judges how cleanly the pixels render what they show: compression, lost resolution, noise, blur.
It does not judge what they show: not content, composition, aesthetics, anatomy or the prompt. It
sees pictures at native resolution, and no score depends on a picture's size as such; so a picture
enlarged without new detail scores lower, and an upscaler's invented detail is taken for detail.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from .base import Scorer, ScorerCard, check_images, working_precision
from .checkpoint import load_exactly, read_config, read_weights, weight_files, weights_digest

SMALLEST = 32  # px; smaller sides are extended by repeating their last row or column
WEIGHTS = Path(__file__).with_name("weights") / "nano.safetensors"

LIMITS = (
    "Technical quality only: compression, lost resolution, noise, blur. Intended blur and grain "
    "count as faults. Scores of one picture's versions compare best; across pictures they also "
    "reflect what is shown: what is flat, or a crop below 200 px with little in it, scores low."
)
OUT_OF_SCOPE = "Content, composition, aesthetics, anatomy, prompt following, safety."


class NanoScorer(Scorer):
    """Convolutions at native resolution, statistics over the picture, and a linear head.

    Args:
        widths: channels of each stage; the first works on 2x2 blocks of pixels, and every further
            one halves the resolution.
        blocks: residual blocks of each stage.
        embedding: length of the feature that the linear head reads.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 96),
        blocks: Sequence[int] = (0, 0, 1, 2),
        embedding: int = 128,
        name: str = "nano",
    ):
        super().__init__()
        self.config = {
            "tastemaker": "nano",
            "name": name,
            "widths": list(widths),
            "blocks": list(blocks),
            "embedding": embedding,
        }
        inputs = (12, *widths[:-1])  # 3 colours x 2x2 pixels
        strides = (1, *[2] * (len(widths) - 1))
        self.stages = nn.ModuleList(map(_stage, inputs, widths, strides, blocks))
        self.neck = nn.Linear(2 * sum(widths), embedding)
        self.head = nn.Linear(embedding, 1)
        self._card = ScorerCard(
            name=name,
            licence="Apache-2.0",
            unit="latent technical quality; clean pictures: mean 0, deviation 1",
            range=(float("-inf"), float("inf")),
            capabilities=("embed", "score_video", "differentiable", "win_probability"),
            limits=LIMITS,
            out_of_scope=OUT_OF_SCOPE,
        )

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.head(self._embed(x).to(self.dtype))[:, 0].float()

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to the feature that the head reads, [B, D] float32."""
        check_images(images, self.device)
        return self._embed(self.prepare(working_precision(images))).float()

    def _embed(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, D]."""
        # On a CPU, one picture at a time: as fast, and rounding cannot depend on the batch. Nearly
        # constant pictures have channels near zero, whose logarithm would enlarge the difference.
        if len(x) > 1 and x.device.type == "cpu":
            return torch.cat([self._embed(picture) for picture in x.split(1)])
        x = F.pixel_unshuffle(4 * (_padded(x).to(self.dtype) - 0.5), 2)  # [B, 12, H/2, W/2]
        statistics = []
        for stage in self.stages:
            x = stage(x)
            statistics.append(_statistics(x))
        return F.silu(self.neck(torch.cat(statistics, 1).to(self.dtype)))


class _Block(nn.Module):
    """x + a perceptron on each pixel's 3x3 neighbourhood. Starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.around = _conv(width, width, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.silu(self.widen(self.around(x))))


def _stage(inputs: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    blocks_ = [_Block(width) for _ in range(blocks)]
    return nn.Sequential(_conv(inputs, width, stride), nn.SiLU(), *blocks_)


def _conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # Mirrored edges: zeros would draw a frame around the picture, which tells the picture's size.
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, padding_mode="reflect")


def _padded(x: Tensor) -> Tensor:
    """[B, 3, H, W] with even sides of at least `SMALLEST`; the last row and column are repeated."""
    h, w = x.shape[-2:]
    right, below = (max(side % 2, SMALLEST - side) for side in (w, h))
    return F.pad(x, (0, right, 0, below), mode="replicate") if right or below else x


def _statistics(x: Tensor) -> Tensor:
    """[B, C, h, w] to mean and log root mean square of each channel, [B, 2 C].

    Both are averages over the picture, so its size as such does not show. In the logarithm, the
    ratios between frequency bands, which blur and compression change, become differences.
    """
    x = working_precision(x)
    mean, power = x.mean((2, 3)), x.square().mean((2, 3))
    return torch.cat([mean, 0.5 * torch.log(power + 1e-4)], 1)


def load_nano(
    path: Path | None = None,
    *,
    revision: str | None = None,
    task: str = "quality",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> NanoScorer:
    """The embedded scorer, or one of its kind from a folder (config.json and model.safetensors).

    Raises:
        ValueError: another task, or weights that are damaged or do not fit the configuration.
    """
    if task != "quality":
        raise ValueError(f'nano judges "quality" only, not {task!r}')
    files = weight_files(path) if path else [WEIGHTS]
    config = read_config(path) if path else _embedded_config()
    state = read_weights(files)
    scorer = _from_config(config, files[0])
    load_exactly(scorer, state, files[0])
    fingerprint = {"weights": weights_digest(state), "preprocessing": "native resolution"}
    scorer._card = replace(scorer._card, revision=revision, fingerprint=fingerprint)
    return scorer.to(device=device, dtype=dtype or torch.float32).freeze()


def _embedded_config() -> dict[str, Any]:
    with safe_open(WEIGHTS, framework="pt") as file:
        return json.loads(file.metadata()["config"])


def _from_config(config: dict[str, Any], source: Path) -> NanoScorer:
    try:
        return NanoScorer(
            config["widths"], config["blocks"], config["embedding"], config.get("name", "nano")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a nano configuration, for {source}: {error!r}") from None
