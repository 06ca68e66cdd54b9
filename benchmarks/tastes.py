"""Simulated users for `preferences.py`: pictures of differing quality, and three tastes in their pixels.

The tastes were written down, with all their constants, before any scorer was measured on them; the
constants come from the distributions of the pixel statistics alone. Each is a closed formula of the
pixels. None is linear in a feature of an embedded scorer: each has an optimum that can be overshot,
and an interaction or a part (where the salient things are) that averages over the picture cannot see.

A user prefers the version of higher taste, and says the opposite in `FLIPS` of the comparisons. What
is compared is made of pictures that nano has seen in training; what is held out, of pictures that it
has not, of other templates, and the truth there is the taste itself, without flips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from tastemaker.scorers.corruptions import CORRUPTIONS
from tastemaker.training.pictures import Picture

SIDE = 320  # px: larger crops are reduced to it
FLIPS = 0.1
CLEAN = 0.4  # share of versions that are not corrupted
# Strongest and mildest of each corruption; drawn evenly on a logarithmic scale.
STRENGTHS = {
    "jpeg": ("quality", 8, 85),
    "low_resolution": ("scale", 0.4, 0.9),
    "noise": ("sigma", 2, 20),
    "blur": ("radius", 0.5, 2.5),
}


@dataclass(frozen=True, eq=False)
class Version:
    """A crop of a picture, perhaps corrupted: pixels uint8 [H, W, 3]."""

    template: str
    pixels: np.ndarray


def versions(pictures: Sequence[Picture], count: int, seed: int) -> list[Version]:
    """`count` of each picture: square crops anywhere, of half to all of the shorter side."""
    return [
        Version(p.template, np.array(version(p, Random(f"{seed}:{p.name}:{i}"))))
        for p in pictures
        for i in range(count)
    ]


def version(picture: Picture, rng: Random) -> Image.Image:
    """One crop, of at most `SIDE` px, clean or corrupted once."""
    crop = clean_crop(picture, rng)
    if rng.random() < CLEAN:
        return crop
    kind = rng.choice(list(CORRUPTIONS))
    name, low, high = STRENGTHS[kind]
    strength = math.exp(rng.uniform(math.log(low), math.log(high)))
    strength = round(strength) if kind == "jpeg" else strength
    return CORRUPTIONS[kind](crop, rng, **{name: strength})


def clean_crop(picture: Picture, rng: Random) -> Image.Image:
    w, h = picture.image.size
    side = round(min(w, h) * rng.uniform(0.5, 1))
    left, top = rng.randint(0, w - side), rng.randint(0, h - side)
    crop = picture.image.crop((left, top, left + side, top + side))
    return crop if side <= SIDE else crop.resize((SIDE, SIDE), Image.LANCZOS)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to Rec. 601 luminance [H, W] in [0, 1]."""
    return pixels.astype(np.float64) @ (0.299, 0.587, 0.114) / 255


def laplacian(y: np.ndarray) -> np.ndarray:
    """[H, W] to [H-2, W-2]: four neighbours minus four times the middle."""
    return y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]


def detail(y: np.ndarray) -> float:
    """Logarithm of the root mean square of the Laplacian: grows with sharpness, grain and noise."""
    return math.log(math.sqrt(np.square(laplacian(y)).mean()) + 1e-3)


def colourfulness(pixels: np.ndarray) -> float:
    """Hasler and Suesstrunk (2003), of colours in [0, 1]: about 0 (grey) to 0.5."""
    r, g, b = np.moveaxis(pixels.astype(np.float64) / 255, -1, 0)
    rg, yb = r - g, 0.5 * (r + g) - b
    return math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean())


def noise_level(y: np.ndarray) -> float:
    """Immerkaer's (1996) fast estimate of the noise's standard deviation, of luminance in [0, 1]."""
    rows = y[:-2] - 2 * y[1:-1] + y[2:]
    residual = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return math.sqrt(math.pi / 2) * np.abs(residual).mean() / 6


def blockiness(y: np.ndarray) -> float:
    """Logarithm of the mean step across the edges of 8x8 blocks over that elsewhere."""
    ratios = []
    for steps in (np.abs(np.diff(y, axis=1)), np.abs(np.diff(y, axis=0)).T):
        edge = np.arange(steps.shape[1]) % 8 == 7
        ratios.append((steps[:, edge].mean() + 1e-3) / (steps[:, ~edge].mean() + 1e-3))
    return math.log(sum(ratios) / 2)


def saliency(y: np.ndarray) -> np.ndarray:
    """Spectral residual of Hou and Zhang (2007): [64, 64], sums to 1."""
    small = np.asarray(Image.fromarray(y.astype(np.float32)).resize((64, 64), Image.BOX))
    spectrum = np.fft.fft2(small)
    log_amplitude = np.log(np.abs(spectrum) + 1e-6)
    rolled = [
        np.roll(log_amplitude, shift, (0, 1)) for shift in np.ndindex(3, 3)
    ]  # circular, so any corner may be the middle once it is rolled back
    average = np.roll(np.mean(rolled, 0), (-1, -1), (0, 1))
    residual = np.exp(log_amplitude - average + 1j * np.angle(spectrum))
    rough = np.abs(np.fft.ifft2(residual)) ** 2
    along = np.exp(-np.square(np.fft.fftfreq(64) * 64) / (2 * 2.5**2))  # a Gaussian, circular
    blur = np.fft.fft2(np.outer(along, along))
    smooth = np.maximum(np.fft.ifft2(np.fft.fft2(rough) * blur).real, 0)
    return smooth / smooth.sum()


def centredness(y: np.ndarray) -> float:
    """1 when all that is salient lies in the middle, 0 when it lies anywhere alike; may be negative."""
    x = (np.arange(64) + 0.5) / 32 - 1
    distance = np.hypot(x[:, None], x[None])
    return 1 - (saliency(y) * distance).sum() / distance.mean()


def crisp_and_colourful(pixels: np.ndarray) -> float:
    """Detail up to an optimum, beyond which it is harsh; and colour, where there is detail to carry it."""
    d = (detail(luminance(pixels)) + 2.6) / 0.77
    c = min((colourfulness(pixels) - 0.167) / 0.105, 2.5)
    return -((d - 0.6) ** 2) + 1.2 * c / (1 + math.exp(-2 * d))


def well_lit(pixels: np.ndarray) -> float:
    """Neither dark nor pale, neither flat nor harsh, nothing crushed or blown out."""
    y = luminance(pixels)
    clipped = (y < 0.03).mean() + (y > 0.97).mean()
    return -(((y.mean() - 0.48) / 0.18) ** 2) - ((y.std() - 0.23) / 0.07) ** 2 - 3 * clipped


def clean_and_composed(pixels: np.ndarray) -> float:
    """Neither grainy nor soft nor blocky; where that holds, what is salient lies in the middle."""
    y = luminance(pixels)
    noise = (math.log(noise_level(y) + 1e-3) + 5.1) / 0.88
    d = (detail(y) + 2.6) / 0.77
    faults = math.log1p(math.exp(2 * (noise - 0.7))) + math.log1p(math.exp(-2 * (d + 0.3)))
    faults += 4 * max(blockiness(y) - 0.05, 0)
    return -faults + 1.5 * math.tanh(centredness(y) / 0.12) / (1 + faults)


TASTES: dict[str, Callable[[np.ndarray], float]] = {
    "crisp and colourful": crisp_and_colourful,
    "well lit": well_lit,
    "clean and composed": clean_and_composed,
}
