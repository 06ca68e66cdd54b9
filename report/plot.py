"""Curves as a picture: enough to see how a run went, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import BACKGROUND, EMPTY, QUIET, TEXT

COLOURS = ((96, 165, 250), (251, 146, 60), (74, 222, 128), (244, 114, 182))
GUIDE = (113, 113, 122)
FINE = 2  # drawn so many times larger, then reduced: Pillow's lines are jagged
MARGIN = tuple(FINE * side for side in (72, 48, 24, 56))  # left, top, right, bottom
TICKS = 6  # at most about so many on an axis
FEW = 60  # points of a curve that are marked one by one

Curve = Sequence[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]


def plot(
    curves: Mapping[str, Curve],
    *,
    dots: Mapping[str, Curve] | None = None,
    guides: Mapping[str, Curve] | None = None,
    bars: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    title: str = "",
    across: str = "",
    size: tuple[int, int] = (900, 480),
) -> Image.Image:
    """Draws curves [(x, y), ...] by name, with both axes labelled; what is not finite is left out.

    A flat line or a single point is drawn too. ValueError if there is no finite point at all.

    Args:
        dots: clouds of points, which no line joins.
        guides: grey lines behind the curves: what would be ideal, what a coin would do.
        bars: an interval (x, low, high) at points of the curve of that name.
        bounds: left, right, low, high of the axes; by default a little more than all that is drawn.
    """
    curves, dots, guides = (_finite(each or {}) for each in (curves, dots, guides))
    bars = {name: [bar for bar in each if _all_finite(bar)] for name, each in (bars or {}).items()}
    points = [*chain(*curves.values(), *dots.values(), *guides.values())]
    points += [(x, y) for each in bars.values() for x, *ends in each for y in ends]
    if not points:
        raise ValueError("nothing to plot: no finite point")
    axes = bounds or (*_bounds([x for x, _ in points]), *_bounds([y for _, y in points]))
    wide, high = (FINE * side for side in size)
    picture = Image.new("RGB", (wide, high), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    box = (MARGIN[0], MARGIN[1], wide - MARGIN[2], high - MARGIN[3])

    def place(x: float, y: float) -> tuple[float, float]:
        left, right, low, top = axes
        return (
            box[0] + (x - left) / (right - left) * (box[2] - box[0]),
            box[3] - (y - low) / (top - low) * (box[3] - box[1]),
        )

    whole = all(float(x).is_integer() for x, _ in points)
    _draw_axes(draw, box, axes, place, whole)
    colours = dict(zip((*dots, *curves), COLOURS * 8, strict=False))
    for name, cloud in dots.items():
        _draw_dots(draw, [place(*point) for point in cloud], colours[name], 2)
    for guide in guides.values():
        _draw_line(draw, [place(*point) for point in guide], GUIDE)
    for name, curve in curves.items():
        for x, *ends in bars.get(name, ()):
            draw.line([place(x, end) for end in ends], colours[name], FINE + 1)
        spots = [place(*point) for point in curve]
        _draw_line(draw, spots, colours[name])
        if len(spots) <= FEW:
            _draw_dots(draw, spots, colours[name], 3)
    draw.text((box[0], 14 * FINE), title, TEXT, _font(18))
    _draw_foot(draw, {**colours, **dict.fromkeys(guides, GUIDE)}, across, picture.size)
    return picture.reduce(FINE)


def _draw_axes(draw, box: Sequence[int], axes: Sequence[float], place: Place, whole: bool) -> None:
    """`whole`: what is across are whole numbers, and nothing is between them."""
    left, right, low, high = axes
    draw.rectangle(box, EMPTY)
    for y in _ticks(low, high):
        up = place(left, y)[1]
        draw.line((box[0], up, box[2], up), BACKGROUND, FINE)
        draw.text((box[0] - 8 * FINE, up), f"{y:.6g}", QUIET, _font(15), anchor="rm")
    for x in _ticks(left, right, least=1.0 if whole else 0.0):
        at = (place(x, low)[0], box[3] + 8 * FINE)
        draw.text(at, f"{x:.6g}", QUIET, _font(15), anchor="ma")


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _draw_line(draw, spots: list[tuple[float, float]], colour) -> None:
    if len(spots) > 1:
        draw.line(spots, colour, 2 * FINE, joint="curve")


def _draw_dots(draw, spots: list[tuple[float, float]], colour, radius: int) -> None:
    r = radius * FINE
    for x, y in spots:
        draw.ellipse((x - r, y - r, x + r, y + r), colour)


def _draw_foot(draw, colours: Mapping[str, tuple], across: str, size: tuple[int, int]) -> None:
    """What the colours mean, and what the horizontal axis is."""
    at, foot, side = MARGIN[0], size[1] - 22 * FINE, 14 * FINE
    for name, colour in colours.items():
        draw.rectangle((at, foot, at + side, foot + 12 * FINE), colour)
        draw.text((at + 20 * FINE, foot + 6 * FINE), name, TEXT, _font(15), anchor="lm")
        at += 44 * FINE + int(_font(15).getlength(name))
    draw.text((size[0] - MARGIN[2], foot + 6 * FINE), across, QUIET, _font(15), anchor="rm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * FINE)


def _finite(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {name: [p for p in curve if _all_finite(p)] for name, curve in curves.items()}


def _all_finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """A little more than what the values span."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - room, high + room
