"""Bicubic resizing: bit-equal to Pillow for 8-bit pictures, differentiable for floating point.

Pillow resizes 8-bit pictures in fixed point: coefficients of 22 fractional bits, one pass along
each axis, 8-bit pixels in between. Those integers are reproduced here exactly, by matrix products
that any device does fast. Source: `Resample.c` and `Image.resize` of Pillow 10 to 13.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .decode import MAX_PIXELS

PRECISION = 22  # fractional bits of Pillow's coefficients
DIGIT = 8  # bits of a coefficient in one matrix product
DIGITS = 3  # 24 bits: coefficients lie within (-2, 2)
BLOCK = 32  # outputs that share one window of inputs
MAX_TAPS = 2**24 // (255 * 2 ** (DIGIT - 1))  # float32 sums stay exact: up to a 128-fold reduction
CHUNK_PIXELS = 2**24  # source pixels in flight: bounds the device memory of the sums

# Which pass comes first changed with 12.2 and 13; pixels are rounded in between, so it shows.
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
ORDER = next(v for v in ((13, 0), (12, 2), (10, 0)) if v <= PILLOW)
# For fingerprints: on fine texture the orders differ by a few levels.
METHOD = f"bicubic, passes in the order of Pillow {'.'.join(map(str, ORDER))}"


Window = tuple[tuple[int, int], tuple[int, int]]  # (start, stop) of the rows, then of the columns


def resize(images: Tensor, size: tuple[int, int], window: Window | None = None) -> Tensor:
    """[B, 3, H, W] to [B, 3, *size], bicubic with antialiasing. The same dtype comes back.

    uint8 is bit-equal to `PIL.Image.resize(..., BICUBIC)` of the installed Pillow, on any device.
    Floating point in [0, 1] is resized in one pass without rounding, clamped to [0, 1] as Pillow
    clips, and differentiable. `window` is the part of the result that is returned, by default all.
    """
    (top, bottom), (left, right) = window or _whole(size)
    if tuple(images.shape[-2:]) == tuple(size):
        return images[..., top:bottom, left:right] if window else images
    if images.dtype == torch.uint8:
        # On a CPU Pillow itself is the fastest exact way, unless it would make far more than needed.
        by_pillow = images.device.type == "cpu" and size[0] * size[1] <= MAX_PIXELS
        return (_by_pillow if by_pillow else _on_device)(images, size, window or _whole(size))
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized[..., top:bottom, left:right].clamp(0, 1)


def _whole(size: tuple[int, int]) -> Window:
    return (0, size[0]), (0, size[1])


def _by_pillow(images: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    """Pillow itself, one picture at a time."""
    (top, bottom), (left, right) = window
    if images.is_meta:  # only the shape is asked for
        return images.new_empty(*images.shape[:2], bottom - top, right - left)
    resized = [
        np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
        for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    ]
    part = np.stack([image[top:bottom, left:right] for image in resized])
    return torch.from_numpy(part).permute(0, 3, 1, 2).contiguous().to(images.device)


def _on_device(images: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    """The same integers as Pillow's, computed where the pictures lie."""
    source = tuple(images.shape[-2:])
    if max(map(_taps, source, size)) > MAX_TAPS:
        return _by_pillow(images, size, window)
    together = max(1, CHUNK_PIXELS // (source[0] * source[1]))
    return torch.cat([_two_passes(chunk, size, window) for chunk in images.split(together)])


def _two_passes(images: Tensor, size: tuple[int, int], window: Window) -> Tensor:
    for axis in (-2, -1) if height_first(images.shape[-2:], size) else (-1, -2):
        (start, stop), m = window[axis], size[axis]
        x = images.transpose(axis, -1)
        x = x[..., start:stop] if x.shape[-1] == m else _pass(x, m, start, stop)
        images = x.transpose(axis, -1)
    return images.contiguous()


def height_first(
    source: tuple[int, int], size: tuple[int, int], order: tuple[int, int] = ORDER
) -> bool:
    """Whether Pillow, since that version, makes the vertical pass first."""
    (height, width), (new_height, new_width) = source, size
    if order == (13, 0):  # where the height shrinks by over twice as many pixels as the width
        return height > new_height and height - new_height > 2 * (width - new_width)
    return order == (12, 2) and height > new_height and height > 100 * width


def _pass(x: Tensor, m: int, start: int, stop: int) -> Tensor:
    """uint8 [..., n] to the outputs from `start` to `stop` of [..., m], along the last axis.

    A coefficient is 65536 d2 + 256 d1 + d0 with signed digits of 8 bits. Pixels and digits are exact
    in float32 and in TF32, and so are their sums, which stay below 2^24.
    """
    index, digits = _blocks(x.shape[-1], m, start, stop, x.device)  # [blocks, W], [blocks, W, 96]
    rows = x.reshape(-1, x.shape[-1])  # [R, n]
    windows = rows[:, index].float().transpose(0, 1)  # [blocks, R, W]
    sums = torch.bmm(windows, digits).unflatten(-1, (DIGITS, BLOCK))  # [blocks, R, 3, 32]
    total = torch.full_like(sums[:, :, 0], 1 << (PRECISION - 1), dtype=torch.int32)
    for i in range(DIGITS):
        total += sums[:, :, i].int() << (DIGIT * i)
    pixels = (total >> PRECISION).clamp_(0, 255).to(torch.uint8)  # [blocks, R, 32]
    return pixels.transpose(0, 1).reshape(*x.shape[:-1], -1)[..., : stop - start]


@lru_cache(maxsize=64)
def _blocks(n: int, m: int, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which inputs each block of `BLOCK` outputs reads, and with which digits.

    Returns index [blocks, W] int64 and digits [blocks, W, DIGITS * BLOCK] float32.
    """
    first, rest = coefficients(n, m, start, stop)
    origin = first[::BLOCK]  # [blocks]
    block, place = np.divmod(np.arange(stop - start), BLOCK)
    taps = (first - origin[block])[:, None] + np.arange(rest.shape[1])  # [outputs, T] in the block
    digits = np.zeros((len(origin), int(taps.max()) + 1, DIGITS, BLOCK), dtype=np.float32)
    half, base = 1 << (DIGIT - 1), 1 << DIGIT
    for i in range(DIGITS):
        digit = (rest + half) % base - half
        rest = (rest - digit) // base
        digits[block[:, None], taps, i, place[:, None]] = digit
    index = np.minimum(origin[:, None] + np.arange(digits.shape[1]), n - 1)  # beyond, digits are 0
    return torch.from_numpy(index).to(device), torch.from_numpy(digits).flatten(2).to(device)


def coefficients(n: int, m: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's fixed-point coefficients from n to m pixels, for the outputs from `start` to `stop`.

    Returns the first input of each output [stop - start], and its taps [stop - start, T] int64.

    Every operation, and the order of the sum, is that of `precompute_coeffs`: equal to the last bit.
    """
    scale = n / m
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    center = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + support + 0.5).astype(np.int64), n)
    x = first[:, None] + np.arange(_taps(n, m))
    weight = _bicubic(np.abs((x - center[:, None] + 0.5) * (1.0 / stretch)))
    weight[x >= stop[:, None]] = 0.0
    total = np.add.accumulate(weight, axis=1)[:, -1:]  # one after the other, as Pillow adds
    weight = np.divide(weight, total, out=weight, where=total != 0.0)
    rounding = np.where(weight < 0, -0.5, 0.5)
    return first, np.trunc(rounding + weight * (1 << PRECISION)).astype(np.int64)


def _taps(n: int, m: int) -> int:
    return math.ceil(2.0 * max(n / m, 1.0)) * 2 + 1


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The Keys kernel with a = -0.5, for x >= 0."""
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
