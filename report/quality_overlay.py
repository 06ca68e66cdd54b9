"""A picture of a quality map: where the score is lost, in colour over the grey picture."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..scorers.quality_map import badness
from .contact_sheet import BACKGROUND, QUIET, TEXT, format_score

# From best to worst; told apart by the colour-blind too, since the lightness changes with the hue.
COLOURS = ((38, 70, 140), (60, 140, 190), (240, 225, 150), (245, 140, 50), (215, 25, 40))
LEGEND = 32  # pixels: narrower, there is no room for its bar; of a narrower picture it is cut off
COVER = (0.15, 0.65)  # share of the colour over the picture, at the best and at the worst score


def draw_overlay(
    picture: Tensor, field: Tensor, mask: Tensor, scale: tuple[float, float], title: str = ""
) -> Image.Image:
    """The picture in grey, the map in colour on it, the mask's outline, and a legend below.

    Args:
        picture: [H, W, 3] in [0, 1].
        field: map [H, W] in the scorer's unit; NaN stays grey.
        mask: bool [H, W], outlined.
        scale: scores (worst, best) that the colours span.
    """
    grey = 0.1 + 0.7 * picture.nan_to_num(0, 0, 0).mean(-1, keepdim=True)  # [H, W, 1]
    bad = badness(field, scale)[..., None]
    cover = (COVER[0] + (COVER[1] - COVER[0]) * bad**1.5).where(torch.isfinite(field)[..., None], 0)
    mixed = torch.lerp(grey.expand(-1, -1, 3), colours(bad[..., 0]), cover)
    line = max(1, round(min(mask.shape) / 300))
    mixed = mixed.where(~_outline(mask, 2 * line)[..., None], torch.zeros(3))
    mixed = mixed.where(~_outline(mask, line)[..., None], torch.ones(3))
    shown = Image.fromarray((255 * mixed).round().clamp(0, 255).byte().numpy())
    legend = draw_legend(max(shown.width, LEGEND), scale, title)
    both = Image.new("RGB", (shown.width, shown.height + legend.height), BACKGROUND)
    both.paste(shown)
    both.paste(legend, (0, shown.height))
    return both


def colours(bad: Tensor) -> Tensor:
    """[...] from 0 (best) to 1 (worst) to RGB [..., 3] in [0, 1]."""
    stops = torch.tensor(COLOURS) / 255
    place = bad * (len(stops) - 1)
    first = place.floor().clamp(0, len(stops) - 2).long()
    return torch.lerp(stops[first], stops[first + 1], (place - first)[..., None])


def draw_legend(width: int, scale: tuple[float, float], title: str = "") -> Image.Image:
    """A bar from worst to best with its scores, to be read when the picture is 400 px wide."""
    size = max(9, round(width / 26))
    font, margin = ImageFont.load_default(size), size // 2
    legend = Image.new("RGB", (width, 3 * size), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    if not all(map(math.isfinite, scale)):
        draw.text((margin, margin), "no score", TEXT, font)
        return legend
    bar = colours(torch.linspace(1, 0, width - 2 * margin)).expand(size, -1, -1)
    legend.paste(Image.fromarray(np.uint8(255 * bar)), (margin, margin // 2))
    under = margin // 2 + size + size // 8
    draw.text((margin, under), f"worst {format_score(scale[0])}", TEXT, font)
    draw.text((width - margin, under), f"best {format_score(scale[1])}", TEXT, font, anchor="ra")
    draw.text((width / 2, under), title, QUIET, font, anchor="ma")
    return legend


def _outline(mask: Tensor, thick: int) -> Tensor:
    """Pixels [H, W] within `thick` of a mask's border, on its outside."""
    grown = F.max_pool2d(mask[None, None].float(), 2 * thick + 1, 1, thick)[0, 0] > 0.5
    return grown & ~mask
