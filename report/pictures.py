"""Pictures with what made them: PNG text and WebP EXIF as ComfyUI writes and reads them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .names import publish

PNG = {"format": "PNG", "compress_level": 4}  # as Save Image
WEBP_SIDE = 16383  # pixels: the format holds no more
MODEL, MAKE = (
    0x0110,
    0x010F,
)  # EXIF tags: the prompt is kept in the first, the rest from the second down


def webp(quality: int | None) -> dict[str, Any]:
    """How to save WebP: losslessly for None, or with a quality from 1 to 100."""
    how = {"format": "WEBP", "method": 4}
    return how | ({"lossless": True, "exact": True} if quality is None else {"quality": quality})


def save_picture(
    picture: Image.Image, names: Iterable[Path], how: Mapping[str, Any], texts: Mapping[str, str]
) -> Path:
    """Writes a picture under the first name that is free; it appears there whole or not at all.

    Args:
        names: in one folder, which is made.
        how: `PNG` or `webp(...)`.
        texts: "prompt", "workflow" and others to JSON; kept in the file.

    Raises:
        ValueError: the picture is too large for the format.
    """
    if how["format"] == "WEBP" and max(picture.size) > WEBP_SIDE:
        raise ValueError(f"WebP holds {WEBP_SIDE} pixels a side, got {picture.size}: choose PNG")
    names = iter(names)
    first = next(names)
    first.parent.mkdir(parents=True, exist_ok=True)
    temporary = first.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            picture.save(file, **how, **_kept(how["format"], picture, texts))
            file.flush()
            os.fsync(file.fileno())
        return publish(temporary, chain([first], names))
    finally:
        temporary.unlink(missing_ok=True)


def _kept(kind: str, picture: Image.Image, texts: Mapping[str, str]) -> dict[str, Any]:
    if not texts:
        return {}
    if kind == "PNG":
        chunks = PngInfo()
        for key, text in texts.items():
            chunks.add_text(key, text)
        return {"pnginfo": chunks}
    exif = picture.getexif()
    others = [key for key in texts if key != "prompt"]
    if "prompt" in texts:
        exif[MODEL] = f"prompt:{texts['prompt']}"
    for i, key in enumerate(others):
        exif[MAKE - i] = f"{key}:{texts[key]}"
    return {"exif": exif}
