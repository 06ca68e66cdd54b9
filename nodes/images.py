"""The border: ComfyUI's pictures [B, H, W, C] in [0, 1] to and from everybody else's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


def singles(batches: Sequence[Tensor]) -> list[Tensor]:
    """IMAGE batches [b, H, W, C], of any sizes, to single pictures [H, W, C] in order.

    ValueError if it is no picture of 1, 3 or 4 channels.
    """
    for batch in batches:
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape[1:]:
            raise ValueError(f"images must be [B, H, W, 3], got {list(batch.shape)}")
    return [picture for batch in batches for picture in batch]


def to_pixels(picture: Tensor) -> Tensor | None:
    """[H, W, C] in [0, 1] to the 8-bit [3, H, W] that Save Image would write; None if not finite.

    So a picture has the score of its file. Alpha is dropped, as where files are read.
    """
    if not torch.isfinite(picture).all():
        return None
    rgb = picture[..., :3] if picture.shape[-1] > 1 else picture.expand(*picture.shape[:2], 3)
    return (255.0 * rgb.movedim(-1, 0)).clamp(0, 255).to(torch.uint8)


def to_pil(picture: Tensor) -> Image.Image:
    """[H, W, C] in [0, 1] to an RGB picture; what is not finite becomes black."""
    pixels = to_pixels(picture.nan_to_num(0, 0, 0))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


class Pictures(Sequence[Image.Image]):
    """Pictures [H, W, C] as `to_pil` makes them, when asked for: of hundreds, a preview shows 48."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, i: int) -> Image.Image:
        return to_pil(self.tensors[i])


def from_pil(picture: Image.Image) -> Tensor:
    """An RGB picture to an IMAGE batch of one, [1, H, W, 3] float32."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, picture.height, picture.width, 3) / 255.0).float()
