"""Nano: the embedded judge of technical quality.

There is no paper and nothing to download: a convolutional network of a fifth of a million
parameters, trained by `training/nano.py` on corrupted copies of AI-generated pictures; its weights
are `weights/nano.safetensors` beside this file. Licence Apache-2.0, like the code.

Range: unbounded. The clean pictures it learnt from score 0 on average, with a standard deviation of
1; those it never saw 0.08, with 1.21. Spoiled ones lie far below: -10 with noise of sigma 25 of 255.
Direction: higher is better; the probability that A beats B is sigmoid(score_A - score_B).

It judges how cleanly the pixels render what they show: compression, lost resolution, noise, blur.
It does not judge what they show: not content, composition, aesthetics, anatomy or the prompt. It
sees pictures at native resolution, and no score depends on a picture's size as such; so a picture
enlarged without new detail scores lower, and an upscaler's invented detail is taken for detail.

Measured on the 126 pictures of `training/nano_results.md`, which it never saw: a mirror image
differs by 0.20 on average. The mean of nine overlapping crops, which see more of the middle, differs
from the whole by 0.17 at 224 px, 0.07 at 160, -0.01 at 128, -0.15 at 96 and -0.28 at 64.
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
from .tuned import tuned_card
from .values import COUNT, COUNTS, TEXT, WHOLES, value

CELL = 32  # px; statistics are taken in cells of this side, and the cells' features averaged
FLOOR = 0.05  # of a channel's mean square; see `_statistics`
WEIGHTS = Path(__file__).with_name("weights") / "nano.safetensors"

LIMITS = (
    "Technical quality only: compression, lost resolution, noise, blur. Intended blur and grain "
    "count as faults. Scores of one picture's versions compare best; across pictures they also "
    "reflect what is shown: plain areas score about -1. A mirror image differs by 0.2."
)
OUT_OF_SCOPE = "Content, composition, aesthetics, anatomy, prompt following, safety."


class NanoScorer(Scorer):
    """Convolutions at native resolution, their statistics in cells, and a linear head on the mean.

    The score is the mean of the cells' scores: a picture scores as its parts do, at any size.

    Args:
        widths: channels of each stage; the first works on 2x2 blocks of pixels, and every further
            one halves the resolution; at most five.
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
        if len(widths) > 5:
            raise ValueError(f"at most 5 stages, which halve {CELL} px to 1, got {len(widths)}")
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
            unit="latent technical quality; the clean pictures it learnt from: mean 0, deviation 1",
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
        """[B, 3, H, W] to the mean of the cells' features, [B, D]."""
        # On a CPU, one picture at a time: as fast, and rounding cannot depend on the batch.
        if len(x) > 1 and x.device.type == "cpu" and not self.training:
            return torch.cat([self._embed(picture) for picture in x.split(1)])
        x = F.pixel_unshuffle(4 * (_padded(x).to(self.dtype) - 0.5), 2)  # [B, 12, H/2, W/2]
        statistics = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            statistics.append(_statistics(x, CELL >> (i + 1)))
        cells = torch.cat(statistics, 1).movedim(1, -1)  # [B, cells, cells, 2 C]
        return working_precision(F.silu(self.neck(cells.to(self.dtype)))).mean((1, 2))


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
    """[B, 3, H, W] with even sides of at least a cell; the last row and column are repeated."""
    h, w = x.shape[-2:]
    right, below = (max(side % 2, CELL - side) for side in (w, h))
    return F.pad(x, (0, right, 0, below), mode="replicate") if right or below else x


def _statistics(x: Tensor, cell: int) -> Tensor:
    """[B, C, h, w] to mean and log root mean square of each channel in each cell, [B, 2 C, ...].

    In the logarithm, the ratios between frequency bands, which blur and compression change, become
    differences. JPEG erases the detail of many cells. With a low floor they would dominate the
    gradient of its copies, though what is left there says nothing of the way back.
    """
    x = working_precision(x)
    mean, power = (F.avg_pool2d(y, cell, ceil_mode=True) for y in (x, x.square()))
    return torch.cat([mean, 0.5 * torch.log(power + FLOOR)], 1)


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
    prior = state.pop("head_prior", None)  # no part of the weights: changes no score
    scorer = _from_config(config, path / "config.json" if path else WEIGHTS)
    load_exactly(scorer, state, files[0])
    scorer.head_prior = _checked_prior(prior, scorer.head.in_features, files[0])
    fingerprint = {"weights": weights_digest(state), "preprocessing": "native resolution"}
    card = replace(scorer._card, revision=revision, fingerprint=fingerprint)
    scorer._card = tuned_card(card, config)
    return scorer.to(device=device, dtype=dtype or torch.float32).freeze()


def _checked_prior(prior: Tensor | None, features: int, source: Path) -> Tensor | None:
    if prior is not None and not (prior.shape[:-1] == (features,) and prior.isfinite().all()):
        what = f"must be finite and [{features}, K], got {list(prior.shape)}"
        raise ValueError(f"not a nano checkpoint: head_prior {what}: {source}")
    return prior


def _embedded_config() -> dict[str, Any]:
    with safe_open(WEIGHTS, framework="pt") as file:
        return json.loads(file.metadata()["config"])


def _from_config(config: dict[str, Any], source: Path) -> NanoScorer:
    source = f"not a nano configuration: {source}"
    return NanoScorer(
        value(config, "widths", COUNTS, source),
        value(config, "blocks", WHOLES, source),
        value(config, "embedding", COUNT, source),
        value({"name": "nano", **config}, "name", TEXT, source),
    )
