"""Pictures as a browser shows them: upright and not larger than the screen, or exactly as they are."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from ..scorers.decode import DAMAGE, MAX_PIXELS, as_rgb

# What every browser shows as we would decode it, so that the file itself can be sent.
EXACT = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
BOXES = (640, 960, 1280, 1600, 2000, 2600, 3400)  # pixels of the longer side, for a screen
REMEMBERED = 24  # renderings, so that what is asked next is there at once


class Shown(NamedTuple):
    data: bytes
    kind: str  # a MIME type
    size: tuple[int, int]  # (width, height) of the upright picture in its file


def render(path: Path, box: int | None) -> Shown:
    """The picture's own file where a browser shows it whole, else a faithful rendering.

    A rendering has no alpha (what is seen is what is scored), and only the first frame.

    Args:
        box: the longer side is at most so many pixels; None for full size, without any loss.

    Raises:
        OSError, ValueError: the picture cannot be opened.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError("too large to open safely")
            kind, size = _exact_kind(file), _upright_size(file)
            if kind and (box is None or max(size) <= box):
                file.load()  # a damaged file is found out here
                return Shown(path.read_bytes(), kind, size)
            return Shown(*_encode(file, box), size)
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large to open safely: {path}") from error
    except DAMAGE as error:
        raise ValueError(f"cannot be opened: {path} ({error})") from error


def box_for(pixels: int) -> int:
    """The box of `BOXES` for a place of so many pixels."""
    return next((box for box in BOXES if box >= pixels), BOXES[-1])


class Memory:
    """The latest results of a function of hashable arguments; several threads may ask."""

    def __init__(self, function: Callable, limit: int = REMEMBERED):
        self._function, self._limit = function, limit
        self._results: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *arguments):
        with self._lock:
            if arguments in self._results:
                self._results.move_to_end(arguments)
                return self._results[arguments]
        result = self._function(*arguments)
        with self._lock:
            self._results[arguments] = result
            while len(self._results) > self._limit:
                self._results.popitem(last=False)
        return result


def _exact_kind(file: Image.Image) -> str | None:
    """None where a browser might show something else than we decode: alpha, frames, CMYK, 16 bits."""
    plain = file.mode in ("RGB", "L") and getattr(file, "n_frames", 1) == 1
    return EXACT.get(file.format) if plain and "transparency" not in file.info else None


def _upright_size(file: Image.Image) -> tuple[int, int]:
    turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation
    return (file.height, file.width) if turned else file.size


def _encode(file: Image.Image, box: int | None) -> tuple[bytes, str]:
    profile = file.info.get("icc_profile") if file.mode == "RGB" else None
    picture = as_rgb(ImageOps.exif_transpose(file))
    buffer = io.BytesIO()
    if box is None:
        picture.save(buffer, "PNG", compress_level=1, icc_profile=profile)
        return buffer.getvalue(), "image/png"
    picture.thumbnail((box, box), Image.Resampling.LANCZOS, reducing_gap=3)
    # So little compressed that its own losses are not what is judged.
    picture.save(buffer, "JPEG", quality=95, subsampling=0, icc_profile=profile)
    return buffer.getvalue(), "image/jpeg"
