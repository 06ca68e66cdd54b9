"""Where in a picture the score is lost: tiles scored at full resolution, blended into a map.

    field = quality_map(scorer, picture)  # [3, H, W] in [0, 1] -> [H, W] in the scorer's unit
    lost = worst_share(field, 0.1)  # [H, W] bool

A tile is judged as a picture of its own: the map says where the rendering is worse, not whether a
tile fits what is around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import ScorerCard


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a picture lie. All have one size, and together they cover the picture."""

    height: int
    width: int
    tile: tuple[int, int]  # rows and columns of pixels; the picture's own where it is smaller
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, height: int, width: int, tile: int = 128, overlap: float = 0.5) -> Grid:
        """The grid of a picture.

        Args:
            tile: side of a tile, in pixels.
            overlap: share of a side that neighbours have in common at least, 0 <= overlap < 1.
        """
        if min(height, width, tile) < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"a tile needs a side of at least 1 and an overlap from 0 to below 1, "
                f"got {tile} and {overlap} for {height} x {width}"
            )
        sides = min(tile, height), min(tile, width)
        starts = (_starts(n, t, overlap) for n, t in zip((height, width), sides, strict=True))
        return cls(height, width, sides, *starts)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self.tops), len(self.lefts)

    @property
    def boxes(self) -> list[tuple[slice, slice]]:
        """The pixels of each tile, row by row: `picture[box]` of a picture [H, W, ...]."""
        h, w = self.tile
        return [
            (slice(top, top + h), slice(left, left + w)) for top in self.tops for left in self.lefts
        ]


def _starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """Evenly spread, the first at 0 and the last flush with the end."""
    stride = max(1, math.floor(tile * (1 - overlap)))
    gaps = math.ceil((length - tile) / stride)
    return tuple(round(i * (length - tile) / max(gaps, 1)) for i in range(gaps + 1))


def quality_map(
    score: Callable[[Tensor], Tensor],
    picture: Tensor,
    *,
    tile: int = 128,
    overlap: float = 0.5,
    flat: float = 10.0,
    batch_size: int = 16,
) -> Tensor:
    """The score around each pixel, [H, W] float32 on the CPU, in the scorer's unit.

    Args:
        score: tiles [b, 3, h, w], of the picture's dtype, to scores [b]: a `Scorer`, for a
            floating-point picture. NaN means that a tile could not be scored.
        picture: [3, H, W], uint8 or floating point in [0, 1].
        tile, overlap: as `Grid.of` takes them.
        flat: as `spare_flat` takes it.
    """
    grid = Grid.of(*picture.shape[-2:], tile, overlap)
    scores, details = [], []
    for i in range(0, len(grid.boxes), batch_size):
        tiles = torch.stack([picture[:, y, x] for y, x in grid.boxes[i : i + batch_size]])
        scores.append(score(tiles).detach().float().cpu())
        details.append(detail(tiles).cpu())
    spared = spare_flat(torch.cat(scores), torch.cat(details), flat)
    return blend(spared.reshape(grid.shape), grid)


def detail(tiles: Tensor) -> Tensor:
    """How much there is to see in tiles [N, 3, h, w]: a contrast [N], of 255.

    The root mean square of what sets blocks of 8x8 pixels off from the 5x5 blocks around them.
    Noise, compression and all but the heaviest blur leave it as it is, so what is spoiled does not
    pass for flat; a gradient does.
    """
    pixels = tiles.float() if tiles.dtype == torch.uint8 else 255 * tiles.float()
    blocks = F.avg_pool2d(pixels.mean(1, keepdim=True), 8, ceil_mode=True)  # [N, 1, h/8, w/8]
    around = F.avg_pool2d(blocks, 5, 1, 2, count_include_pad=False)
    return (blocks - around).square().mean((1, 2, 3)).sqrt()


def spare_flat(scores: Tensor, detail: Tensor, flat: float) -> Tensor:
    """Scores [N] of one picture's tiles, drawn to their median where there is little to judge.

    Skies, walls and backdrops get low scores though nothing is wrong with them.

    Args:
        detail: [N] from `detail`.
        flat: a tile of this detail keeps half of its distance to the median; 0 changes nothing.
    """
    if flat <= 0:
        return scores
    median = scores.nanmedian()
    return median + (scores - median) * detail / (detail + flat)


def blend(scores: Tensor, grid: Grid) -> Tensor:
    """Scores of a grid's tiles [R, C] to a smooth map [H, W] float32, within their range.

    Each pixel gets the weighted mean of the tiles that cover it. A tile that is not finite has no
    part in it; where no other covers it, the map is NaN.
    """
    (h, w), known = grid.tile, torch.isfinite(scores)
    rows = windows(grid.tops, h, grid.height)  # [R, H]
    columns = windows(grid.lefts, w, grid.width)  # [C, W]
    total = rows.T @ scores.double().where(known, 0) @ columns
    weight = rows.T @ known.double() @ columns
    low, high = _bounds(scores)
    return (total / weight).where(weight > 1e-12, torch.nan).clamp(low, high).float()


def windows(starts: tuple[int, ...], tile: int, length: int) -> Tensor:
    """Weights of the tiles along one axis [K, length], which sum to 1 at every pixel.

    Raised cosines over each tile (the Hann window), divided by their sum.
    """
    offset = torch.arange(length, dtype=torch.float64) - torch.tensor(starts)[:, None]  # [K, L]
    phase = (offset + 0.5) / tile
    weight = torch.sin(math.pi * phase).square().where((phase > 0) & (phase < 1), 0)
    return weight / weight.sum(0)


def worst_share(field: Tensor, share: float) -> Tensor:
    """The lowest `share` (0 to 1) of a map [H, W], as bool [H, W].

    Pixels of equal score come together, so it may be a little more. A map that is the same
    everywhere has no worst part, and NaN is never in it.
    """
    low, high = _bounds(field)
    finite = field[torch.isfinite(field)]
    count = min(math.ceil(share * len(finite)), len(finite))
    if count < 1 or not low < high:
        return torch.zeros_like(field, dtype=torch.bool)
    return below(field, finite.kthvalue(count).values.item())


def below(field: Tensor, score: float) -> Tensor:
    """Where a map [H, W] is at most `score`, as bool [H, W]; NaN is never."""
    return field <= score


def below_median(field: Tensor, margin: float) -> Tensor:
    """Where a map [H, W] lies by more than `margin` below its own median, as bool [H, W]."""
    return field < field.nanmedian() - margin


def without_specks(mask: Tensor, reach: int) -> Tensor:
    """A mask [H, W] without what is narrower than `2 reach + 1` pixels, unless nothing else is in it."""
    opened = _widened(~_widened(~mask, reach), reach) & mask
    return opened if opened.any() else mask


def _widened(mask: Tensor, reach: int) -> Tensor:
    """Each pixel joined by the square of `reach` pixels around it."""
    x = mask[None, None].float()
    for kernel, pad in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        x = F.max_pool2d(x, kernel, 1, pad)
    return x[0, 0] > 0.5


def feather(mask: Tensor, reach: int) -> Tensor:
    """A mask [H, W] to float32 in [0, 1], its edges blurred for `reach` pixels to either side."""
    soft = mask.float()
    if reach < 1 or not 0 < soft.mean() < 1:
        return soft
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / (0.5 * reach)).square())
    kernel = (kernel / kernel.sum())[None, None]
    for _ in range(2):  # rows, then columns
        padded = F.pad(soft[:, None], (reach, reach), mode="replicate")
        soft = F.conv1d(padded, kernel)[:, 0].T
    return soft.clamp(0, 1).contiguous()


def scale_of(field: Tensor, card: ScorerCard) -> tuple[float, float]:
    """The scores (worst, best) that a picture of a map spans.

    At least a tenth of the scorer's range, or 1 where it has none: a picture that is equally good
    everywhere must not look bad anywhere.
    """
    low, high = _bounds(field)
    least = 0.1 * (card.range[1] - card.range[0])
    return min(low, high - (least if math.isfinite(least) else 1.0)), high


def badness(field: Tensor, scale: tuple[float, float]) -> Tensor:
    """A map [H, W] to [0, 1]: 1 at the scale's worst score, 0 at its best and where it is NaN."""
    worst, best = scale
    return ((best - field) / (best - worst)).clamp(0, 1).nan_to_num(0)


def _bounds(values: Tensor) -> tuple[float, float]:
    """Lowest and highest finite value; NaN if there is none."""
    finite = values[torch.isfinite(values)]
    return (finite.min().item(), finite.max().item()) if len(finite) else (math.nan, math.nan)
