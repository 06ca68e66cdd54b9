"""Statistics of a picture's pixels that tastes may be about: tone, colour, layout, detail at five scales.

What textbooks measure. `head_prior` makes random tastes of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCALES = (0.5, 1, 2, 4, 8)  # px, of differences of Gaussians, an octave each
BINS = 16  # of an entropy


def statistics(pixels: np.ndarray) -> dict[str, dict[str, float]]:
    """uint8 [H, W, 3] to family: what of: value. Families: "mean", "deviation", "detail", ..."""
    channels = _channels(pixels)
    found: dict[str, dict[str, float]] = {}
    for name, channel in channels.items():
        for family, value in (_tone(channel) | _layout(channel)).items():
            found.setdefault(family, {})[name] = value
        for q, value in zip(QUANTILES, np.quantile(channel, QUANTILES), strict=True):
            found.setdefault("quantile", {})[f"{name} {q}"] = float(value)
    for name in ("y", "cb", "cr"):
        for scale in SCALES:
            for family, value in _detail(channels[name], scale).items():
                found.setdefault(family, {})[f"{name} {scale}"] = value
    return found


def _channels(pixels: np.ndarray) -> Mapping[str, np.ndarray]:
    """Each [H, W] in [0, 1]; the colour differences in [-1, 1]."""
    r, g, b = np.moveaxis(pixels / 255, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    h, s, v = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("HSV")) / 255, -1, 0)
    return {"r": r, "g": g, "b": b, "y": y, "h": h, "s": s, "v": v, "cb": b - y, "cr": r - y}


def _tone(channel: np.ndarray) -> dict[str, float]:
    mean, deviation = channel.mean(), channel.std()
    z = (channel - mean) / (deviation + 1e-3)
    share = np.histogram(channel, BINS, (min(0, np.floor(channel.min())), 1))[0] / channel.size
    return {
        "mean": mean,
        "deviation": deviation,
        "skewness": (z**3).mean(),
        "kurtosis": np.log((z**4).mean() + 1e-3),
        "entropy": -(share * np.log(share + 1e-9)).sum(),
    }


def _layout(channel: np.ndarray) -> dict[str, float]:
    h, w = channel.shape
    return {
        "centre": _middle(channel).mean() - channel.mean(),
        "top": channel[: h // 2].mean() - channel[h // 2 :].mean(),
        "left": channel[:, : w // 2].mean() - channel[:, w // 2 :].mean(),
    }


def _detail(channel: np.ndarray, scale: float) -> dict[str, float]:
    """Of a band of an octave: how much of it there is, where, how unevenly, and which way it runs."""
    band = gaussian_filter(channel, scale) - gaussian_filter(channel, 2 * scale)
    power = band**2
    total = np.log(power.mean() + 1e-8)
    across, down = (np.abs(np.diff(band, axis=axis)).mean() + 1e-5 for axis in (1, 0))
    return {
        "detail": total,
        "detail in the middle": np.log(_middle(power).mean() + 1e-8) - total,
        "sparseness": 2 * np.log(np.abs(band).mean() + 1e-5) - total,
        "direction": np.log(across / down),
    }


def _middle(channel: np.ndarray) -> np.ndarray:
    h, w = channel.shape
    return channel[h // 4 : h - h // 4, w // 4 : w - w // 4]
