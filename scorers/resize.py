"""Bicubic resizing: bit-equal to Pillow for 8-bit pictures, differentiable for floating point."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, H, W] to [B, 3, *size], bicubic with antialiasing. The same dtype comes back.

    uint8 is bit-equal to `PIL.Image.resize(..., BICUBIC)` of the installed Pillow, on any device.
    Floating point in [0, 1] is resized in one pass without rounding, clamped to [0, 1] as Pillow
    clips, and differentiable.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    if images.dtype == torch.uint8:
        return _resize_pil(images, size)
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _resize_pil(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow itself, one picture at a time: the fastest exact way on a CPU."""
    height, width = size
    resized = [
        np.array(
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(
                (width, height), Image.BICUBIC
            )
        )
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().to(images.device)
