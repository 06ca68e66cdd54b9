"""How Qwen's image processor sizes and normalises pictures, read from the checkpoint's own files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .values import COLOUR, COUNT, OBJECT, SCALE, read_json, value

MAX_ASPECT = 200
BICUBIC = 3  # Pillow's number for it, as the files write it


@dataclass(frozen=True)
class Preprocessing:
    """The values of preprocessor_config.json that decide what the model sees."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_pixels: int
    max_pixels: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of this size is resized to."""
        factor = self.patch * self.merge
        return smart_resize(height, width, factor, self.min_pixels, self.max_pixels)

    def limited(self, max_pixels: int | None) -> Preprocessing:
        """The same with another `max_pixels`, if one is given."""
        if max_pixels is None:
            return self
        if max_pixels < self.min_pixels:
            raise ValueError(
                f"max_pixels must be at least the checkpoint's min_pixels {self.min_pixels}, "
                f"got {max_pixels}"
            )
        return replace(self, max_pixels=max_pixels)


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Sides that are multiples of `factor`, with an area in [min_pixels, max_pixels].

    Sides are rounded to the nearest multiple, halves to the even one (Python's `round`); where that
    leaves the range, the picture is scaled to its bound, and rounded inwards.

    Raises:
        ValueError: when one side is over 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"one side is over {MAX_ASPECT} times the other: {width}x{height} px (crop the picture)"
        )
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * grow / factor) * factor
        w = math.ceil(width * grow / factor) * factor
    return h, w


def read_preprocessing(folder: Path) -> Preprocessing:
    """From processor_config.json where it holds the image processor, else preprocessor_config.json.

    Raises:
        FileNotFoundError, ValueError: naming the file and what it lacks or asks for.
    """
    path, values = _image_processor(folder)
    _check(path, values)
    return Preprocessing(
        patch=value(values, "patch_size", COUNT, path),
        merge=value(values, "merge_size", COUNT, path),
        temporal=value(values, "temporal_patch_size", COUNT, path),
        mean=tuple(value(values, "image_mean", COLOUR, path)),
        std=tuple(value(values, "image_std", SCALE, path)),
        min_pixels=_pixels(values, "min_pixels", "shortest_edge", path),
        max_pixels=_pixels(values, "max_pixels", "longest_edge", path),
    )


def _pixels(values: dict[str, Any], key: str, edge: str, path: Path) -> int:
    """A bound of the picture's area, which older files write as one of `size`."""
    if values.get(key) is not None:
        return value(values, key, COUNT, path)
    return value(values.get("size"), edge, COUNT, path)


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        values = read_json(path)
        values = values.get("image_processor") if name.startswith("processor") else values
        if values:
            return path, value({"image_processor": values}, "image_processor", OBJECT, path)
    raise FileNotFoundError(f"no preprocessor_config.json in {folder}")


def _check(path: Path, values: dict[str, Any]) -> None:
    """Refuses a preprocessing that is not the one implemented here."""
    wanted = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
    }
    for name, known in wanted.items():
        if values.get(name, known) != known:
            raise ValueError(f"{path} asks for {name} {values[name]}; only {known} is supported")
