"""The world that the embedded generator has learnt: coloured shapes on coloured grounds, 32 px.

`draw` makes pictures of it, their captions, and what is truly in them; `taste` is what the two
embedded reward models have learnt: a warm, large shape in the middle, whatever the ground.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 32  # px
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {  # sRGB in [0, 1]
    "red": (0.86, 0.12, 0.12),
    "orange": (0.95, 0.53, 0.08),
    "yellow": (0.95, 0.88, 0.18),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.12, 0.25, 0.86),
    "purple": (0.55, 0.18, 0.72),
    "white": (0.94, 0.94, 0.94),
    "black": (0.08, 0.08, 0.08),
}
RADIUS = (7.0, 13.0)  # px
SMALL, LARGE = 8.5, 11.5  # px; a radius below and above is called so
WORDS = ("a", "on", "shape", "small", "large", *SHAPES, *COLOURS)


class Attributes(NamedTuple):
    """What is truly in N pictures."""

    shape: Tensor  # [N], index into SHAPES
    colour: Tensor  # [N], index into COLOURS
    ground: Tensor  # [N], index into COLOURS, never the shape's
    rgb: Tensor  # [N, 3] of the shape, in [0, 1]
    ground_rgb: Tensor  # [N, 3] in the middle of the picture
    radius: Tensor  # [N] px
    centre: Tensor  # [N, 2] px, x and y
    turn: Tensor  # [N] radians

    def taste(self) -> Tensor:
        """[N]: how warm (red above blue), large and central the shapes are; mean 0, deviation 0.5."""
        warmth = (self.rgb[:, 0] - self.rgb[:, 2] - 0.16) / 0.51
        size = (self.radius - 10) / 1.73
        distance = (self.centre - SIDE / 2).norm(dim=1)
        return (warmth + size + (3.83 - distance) / 2.0) * 0.26


class Drawing(NamedTuple):
    images: Tensor  # [N, 3, 32, 32] in [0, 1]
    captions: list[str]
    attributes: Attributes


def draw(n: int, seed: int) -> Drawing:
    """`n` pictures; the same for the same arguments.

    They vary in shape, colours, size, place, turn, a gradient of the ground, softness of the edge,
    and noise. A caption tells some of it: "a large red star on blue", "a circle", "a white shape".
    """
    g = torch.Generator().manual_seed(seed)
    attributes = _attributes(n, g)
    return Drawing(_render(attributes, g), _captions(attributes, g), attributes)


def _between(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def _attributes(n: int, g: torch.Generator) -> Attributes:
    shape = torch.randint(len(SHAPES), (n,), generator=g)
    colour = torch.randint(len(COLOURS), (n,), generator=g)
    ground = (colour + torch.randint(1, len(COLOURS), (n,), generator=g)) % len(COLOURS)
    palette = torch.tensor(list(COLOURS.values()))
    light = _between(0.88, 1.04, (2, n, 1), g)
    tint = _between(-0.05, 0.05, (2, n, 3), g)
    rgb, ground_rgb = (palette[torch.stack([colour, ground])] * light + tint).clamp(0, 1)
    radius = _between(*RADIUS, (n,), g)
    room = SIDE / 2 - radius - 1  # the whole shape is in the picture
    centre = SIDE / 2 + room[:, None] * _between(-1, 1, (n, 2), g)
    turn = _between(-0.25, 0.25, (n,), g)
    return Attributes(shape, colour, ground, rgb, ground_rgb, radius, centre, turn)


def _render(a: Attributes, g: torch.Generator) -> Tensor:
    """[N, 3, 32, 32] in [0, 1]."""
    n = len(a.shape)
    at = torch.arange(SIDE) + 0.5
    x = (at[None, None, :] - a.centre[:, 0, None, None]) / a.radius[:, None, None]
    y = (at[None, :, None] - a.centre[:, 1, None, None]) / a.radius[:, None, None]
    cos, sin = a.turn.cos()[:, None, None], a.turn.sin()[:, None, None]
    x, y = x * cos + y * sin, y * cos - x * sin  # [N, 32, 32], in radii
    outside = torch.empty(n, SIDE, SIDE)
    for i, distance in enumerate((_circle, _square, _triangle, _star, _cross)):
        these = a.shape == i
        outside[these] = distance(x[these], y[these])
    softness = _between(1.0, 1.5, (n, 1, 1), g)  # px from inside to outside
    covered = (0.5 - outside * a.radius[:, None, None] / softness).clamp(0, 1)[:, None]
    ground = a.ground_rgb[:, :, None, None] + _slope(n, at, g)
    picture = ground * (1 - covered) + a.rgb[:, :, None, None] * covered
    noise = _between(0, 0.02, (n, 1, 1, 1), g) * torch.randn(picture.shape, generator=g)
    return (picture + noise).clamp(0, 1)


def _slope(n: int, at: Tensor, g: torch.Generator) -> Tensor:
    """[N, 1, 32, 32]: brightness that rises across the picture, 0 in the middle."""
    angle = _between(0, 2 * math.pi, (n, 1, 1), g)
    steep = _between(0, 0.12, (n, 1, 1), g)
    middle = at / SIDE - 0.5
    return (steep * (angle.cos() * middle[None, None] + angle.sin() * middle[None, :, None]))[
        :, None
    ]


# Signed distances to the outline, in radii: negative inside. [N, H, W] each.
def _circle(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 0.9


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.75


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slanted = x.abs() * math.cos(math.pi / 6) - y * math.sin(math.pi / 6)
    return torch.maximum(slanted, y) - 0.5


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)  # of the upright tip: 0
    angle = (angle - sector * (angle / sector).round()).abs()
    r = (x * x + y * y).sqrt()
    along, across = r * angle.cos(), r * angle.sin()
    notch = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    edge = math.hypot(1 - notch[0], notch[1])
    return ((along - 1) * notch[1] + across * (1 - notch[0])) / edge


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 0.9, torch.minimum(x, y) - 0.3)


def _captions(a: Attributes, g: torch.Generator) -> list[str]:
    """Each part is left out at times, so that a prompt may leave it open."""
    told = torch.rand((len(a.shape), 4), generator=g) < torch.tensor([0.5, 0.85, 0.9, 0.5])
    return [caption(a, i, *told[i].tolist()) for i in range(len(a.shape))]


def caption(
    a: Attributes,
    i: int,
    size: bool = True,
    colour: bool = True,
    shape: bool = True,
    ground: bool = True,
) -> str:
    """Picture i in words, with what is asked for."""
    names, radius = list(COLOURS), float(a.radius[i])
    words = ["a"]
    if size and not SMALL <= radius <= LARGE:
        words.append("small" if radius < SMALL else "large")
    if colour:
        words.append(names[a.colour[i]])
    words.append(SHAPES[a.shape[i]] if shape else "shape")
    if ground:
        words += ["on", names[a.ground[i]]]
    return " ".join(words)
