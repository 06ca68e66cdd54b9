"""Four ways to spoil a picture: JPEG, low resolution, noise, blur.

The one module that makes corrupted pictures, for training, robustness tests and benchmarks alike.
Each takes a picture (RGB PIL image or uint8 array [H, W, 3]) and a `random.Random`, and returns a
corrupted picture of the same kind and size; the same generator state gives the same picture, bit
for bit. The strength is drawn from the stated range unless it is given.

`jpeg` and `low_resolution` follow the robustness tests of JoyQuality
(https://github.com/fpgaminer/joyquality, Apache-2.0), described there; the code is ours.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from random import Random

import numpy as np
from PIL import Image, ImageFilter

SCALES = (0.5, 0.9)  # low_resolution: share of each side that is kept
UPSCALES = (Image.BILINEAR, Image.BICUBIC, Image.LANCZOS)
SIGMAS = (4.0, 25.0)  # noise: standard deviation, of 255
RADII = (0.7, 3.0)  # blur: standard deviation in pixels, which Pillow calls the radius
JPEG_QUALITIES = range(85, 0, -5)  # tried in turn against the size at quality 90


class NotCompressible(ValueError):
    """No JPEG quality brings the picture down to a third of its size at quality 90."""


def _pictures_or_arrays(corrupt: Callable) -> Callable:
    """Lets a function of RGB PIL images take uint8 arrays [H, W, 3] too, and return what it got."""

    @wraps(corrupt)
    def either(picture: Image.Image | np.ndarray, rng: Random, **strength):
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(
                    f"an array must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}"
                )
            return np.array(corrupt(Image.fromarray(picture), rng, **strength))
        if picture.mode != "RGB":
            raise ValueError(f"a picture must be RGB, got {picture.mode}: convert it first")
        return corrupt(picture, rng, **strength)

    return either


@_pictures_or_arrays
def jpeg(picture: Image.Image, rng: Random, *, quality: int | None = None) -> Image.Image:
    """JPEG compression; by default at `third_size_quality`. Nothing is drawn.

    Args:
        quality: 1 to 95 of Pillow's encoder, with its default chroma subsampling (4:2:0).

    Raises:
        NotCompressible: without `quality`, when a third of the size is out of reach.
    """
    encoded = _encode(picture, third_size_quality(picture) if quality is None else quality)
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def third_size_quality(picture: Image.Image) -> int:
    """The first JPEG quality below 90, in steps of 5, whose file is at most a third of that at 90.

    Raises:
        NotCompressible: no quality does; so it is with tiny and with nearly empty pictures.
    """
    limit = len(_encode(picture, 90)) / 3
    for quality in JPEG_QUALITIES:
        if len(_encode(picture, quality)) <= limit:
            return quality
    raise NotCompressible(f"no JPEG of this {picture.width}x{picture.height} picture is that small")


def _encode(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@_pictures_or_arrays
def low_resolution(
    picture: Image.Image, rng: Random, *, scale: float | None = None, upscale: int | None = None
) -> Image.Image:
    """Down to `scale` of each side with Lanczos, and back up.

    Args:
        scale: share of each side, above 0; drawn from 0.5 to 0.9.
        upscale: a Pillow resampling filter; drawn from bilinear, bicubic and Lanczos.
    """
    drawn_scale, drawn_upscale = rng.uniform(*SCALES), rng.choice(UPSCALES)
    scale = drawn_scale if scale is None else scale
    upscale = drawn_upscale if upscale is None else upscale
    small = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(small, Image.LANCZOS).resize(picture.size, upscale)


@_pictures_or_arrays
def noise(picture: Image.Image, rng: Random, *, sigma: float | None = None) -> Image.Image:
    """Gaussian noise, independent in each pixel and channel, rounded and clipped to 8 bits.

    Args:
        sigma: standard deviation, of 255; drawn from 4 to 25.
    """
    drawn = rng.uniform(*SIGMAS)
    field = np.random.default_rng(rng.getrandbits(64)).standard_normal(
        (picture.height, picture.width, 3), dtype=np.float32
    )
    noisy = np.asarray(picture, np.float32) + field * (drawn if sigma is None else sigma)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


@_pictures_or_arrays
def blur(picture: Image.Image, rng: Random, *, radius: float | None = None) -> Image.Image:
    """Gaussian blur as Pillow does it.

    Args:
        radius: standard deviation in pixels; drawn from 0.7 to 3.
    """
    drawn = rng.uniform(*RADII)
    return picture.filter(ImageFilter.GaussianBlur(drawn if radius is None else radius))


CORRUPTIONS: dict[str, Callable] = {
    "jpeg": jpeg,
    "low_resolution": low_resolution,
    "noise": noise,
    "blur": blur,
}
