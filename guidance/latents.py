"""What a host that is not diffusers tells of its latents: how noisy they are, and roughly what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .decode import spread

FRAMES = 3  # of a video, that are decoded


def noise_ratio(sigma: float, flow: bool, deviation: float = 1.0) -> float:
    """The share r in [0, 1] of noise in a sample: 1 is all noise, 0 is clean.

    Args:
        sigma: of x = (1 - sigma) x0 + sigma n where it is a flow, of x = x0 + sigma n where it is not.
        deviation: of x0.
    """
    signal = deviation * (1 - sigma) if flow else deviation
    length = (sigma**2 + signal**2) ** 0.5
    return sigma / length if length else 0.0


def linear_pixels(
    latents: Tensor,
    factors: Sequence[Sequence[float]],
    bias: Sequence[float] | None = None,
) -> Tensor:
    """A picture of one pixel a latent: [B, C, h, w] -> [B, 3, h, w] in [0, 1], differentiable.

    Args:
        factors: [C, 3], to red, green and blue in [-1, 1].
        bias: [3].

    Raises:
        ValueError: the factors are for another number of channels.
    """
    if latents.shape[1] != len(factors):
        raise ValueError(
            f"these latents have {latents.shape[1]} channels, their linear preview is for "
            f"{len(factors)}: connect a VAE"
        )
    matrix = latents.new_tensor(factors)
    rgb = latents.movedim(1, -1) @ matrix  # [B, h, w, 3]
    if bias is not None:
        rgb = rgb + latents.new_tensor(bias)
    return (rgb.movedim(-1, 1) / 2 + 0.5).clamp(0, 1)


def decoded(latents: Tensor, decode: Callable[[Tensor], Tensor], frames: int = FRAMES) -> Tensor:
    """Latents of pictures or videos to pixels, by a function for pictures [N, C, h, w] -> [N, 3, H, W].

    Pictures [B, C, h, w], also as clips of one frame [B, C, 1, h, w], give [B, 3, H, W]; longer clips
    [B, T, 3, H, W], of at most `frames` evenly spread latent frames, each decoded by itself.
    """
    if latents.ndim == 4:
        return decode(latents)
    clips = spread(latents, frames)  # [B*T, C, 1, h, w]
    pixels = decode(clips.squeeze(2))
    count = len(clips) // len(latents)
    return pixels if count == 1 else pixels.unflatten(0, (-1, count))
