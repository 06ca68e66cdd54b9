"""Curves as a picture: enough to see how a run went, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import BACKGROUND, EMPTY, QUIET, TEXT

COLOURS = ((96, 165, 250), (251, 146, 60), (74, 222, 128), (244, 114, 182))
MARGIN = (72, 48, 24, 56)  # left, top, right, bottom

Curve = Sequence[tuple[float, float]]


def plot(
    curves: Mapping[str, Curve],
    *,
    title: str = "",
    across: str = "",
    size: tuple[int, int] = (900, 480),
) -> Image.Image:
    """Draws curves [(x, y), ...] by name, with both axes labelled; what is not finite is left out.

    A flat line or a single point is drawn too. ValueError if there is no finite point at all.
    """
    finite = {
        name: [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
        for name, curve in curves.items()
    }
    points = [point for curve in finite.values() for point in curve]
    if not points:
        raise ValueError("nothing to plot: no finite point")
    (left, right), (low, high) = (_bounds([p[axis] for p in points]) for axis in (0, 1))
    picture = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    box = (MARGIN[0], MARGIN[1], size[0] - MARGIN[2], size[1] - MARGIN[3])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            box[0] + (x - left) / (right - left) * (box[2] - box[0]),
            box[3] - (y - low) / (high - low) * (box[3] - box[1]),
        )

    draw.rectangle(box, EMPTY)
    for i in range(5):
        y = low + (high - low) * i / 4
        line = place(left, y)[1]
        draw.line((box[0], line, box[2], line), BACKGROUND)
        draw.text((box[0] - 8, line), f"{y:.3g}", QUIET, font, anchor="rm")
    for x, anchor in ((left, "la"), (right, "ra")):
        draw.text((place(x, low)[0], box[3] + 8), f"{x:.3g}", QUIET, font, anchor=anchor)
    draw.text(((box[0] + box[2]) / 2, box[3] + 8), across, QUIET, font, anchor="ma")
    draw.text((box[0], 14), title, TEXT, ImageFont.load_default(18))
    _draw_curves(draw, finite, place, font, size)
    return picture


def _draw_curves(draw, curves: Mapping[str, Curve], place, font, size: tuple[int, int]) -> None:
    at = MARGIN[0]
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(x, y) for x, y in curve]
        if len(spots) > 1:
            draw.line(spots, colour, 2, joint="curve")
        for x, y in spots:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        foot = size[1] - 22
        draw.rectangle((at, foot, at + 14, foot + 12), colour)
        draw.text((at + 20, foot + 6), name, TEXT, font, anchor="lm")
        at += 44 + int(font.getlength(name))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """A little more than what the values span."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - room, high + room
