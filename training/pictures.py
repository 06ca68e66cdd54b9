"""Real AI-generated pictures to train and test on, from three MIT-licensed packages on PyPI.

The packages hold what ComfyUI shows beside its workflow templates: pictures that real workflows
made, nearly all WebP of 350 to 2,880 px, some of them first frames of animations (only the first
frame is used). They are read from the installed packages, or from wheel files and unpacked folders;
no picture is ever copied into this repository.

A picture is usable by a fixed rule that looks at nothing but the picture (`unusable`). Pictures
of one template (`name-1`, `name-2`), and near duplicates of different templates, stay together
when the set is split.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = (
    "comfyui-workflow-templates-media-image",
    "comfyui-workflow-templates-media-other",
    "comfyui-workflow-templates-media-assets-01",
)
SUFFIXES = {".webp", ".png", ".jpg", ".jpeg", ".gif", ".avif"}
MIN_SIDE = 256
MIN_DEVIATION = 4  # of 255: below it a picture is a plain surface
SAME = 32  # bits of 240 in which the hashes of near duplicates differ at most


@dataclass(frozen=True, eq=False)
class Picture:
    """A usable picture: its file name, its pixels uint8 [H, W, 3], and its perceptual hash."""

    name: str
    pixels: np.ndarray
    hash: int

    @property
    def template(self) -> str:
        """The workflow template that it belongs to: `-1`, `-2` are variants of one."""
        return re.sub(r"-\d+$", "", Path(self.name).stem)

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def usable_pictures(sources: Sequence[Path] = ()) -> list[Picture]:
    """Every usable picture of wheel files or folders, by default of the installed packages, by name.

    Raises:
        FileNotFoundError: there is none; the message says what to install.
    """
    found: dict[str, Picture] = {}
    for name, data in _read_all(sources):
        image = _first_frame(data)
        if name not in found and not unusable(image):
            rgb = image.convert("RGB")
            found[name] = Picture(name, np.array(rgb), perceptual_hash(rgb))
    if not found:
        where = ", ".join(map(str, sources)) or "the installed packages"
        raise FileNotFoundError(f"no pictures in {where}: pip install {PACKAGES[0]}")
    return [found[name] for name in sorted(found)]


def unusable(image: Image.Image) -> str | None:
    """Why a picture cannot stand for a clean original, or None.

    The rule: both sides at least 256 px, no transparency, and not a plain surface.
    """
    if min(image.size) < MIN_SIDE:
        return "small"
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        return "transparent"
    if np.asarray(image.convert("L"), np.float32).std() < MIN_DEVIATION:
        return "plain"
    return None


def perceptual_hash(image: Image.Image) -> int:
    """240 bits: whether each of 16x16 cells is brighter than its left neighbour."""
    cells = np.asarray(image.convert("L").resize((16, 16), Image.BOX), np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return int("".join("01"[bit] for bit in bits.astype(int)), 2)


def related(a: Picture, b: Picture) -> bool:
    """Of one template, or near duplicates."""
    return a.template == b.template or (a.hash ^ b.hash).bit_count() <= SAME


def split(pictures: Sequence[Picture], share: float, seed: str) -> tuple[list, list]:
    """(rest, held out): whole groups of related pictures, `share` of the groups held out.

    Which group goes where depends on the seed and the group's first name alone.
    """
    rest: list[Picture] = []
    held_out: list[Picture] = []
    for group in _groups(pictures):
        key = min(picture.template for picture in group)
        draw = int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:8], 16) / 2**32
        (held_out if draw < share else rest).extend(group)
    return rest, held_out


def unseen(pictures: Iterable[Picture], trained_on: Sequence[Picture]) -> list[Picture]:
    """The pictures that are related to none of those trained on."""
    return [p for p in pictures if not any(related(p, seen) for seen in trained_on)]


def _groups(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Connected components of `related`."""
    groups: list[list[Picture]] = []
    for picture in pictures:
        mine = [g for g in groups if any(related(picture, other) for other in g)]
        merged = [other for g in mine for other in g] + [picture]
        groups = [g for g in groups if g not in mine] + [merged]
    return groups


def _first_frame(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _read_all(sources: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of every picture of the sources."""
    if not sources:
        yield from _read_installed()
    for source in sources:
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    yield path.name, path.read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                for entry in wheel.namelist():
                    if Path(entry).suffix.lower() in SUFFIXES:
                        yield Path(entry).name, wheel.read(entry)


def _read_installed() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        try:
            entries = files(package) or []
        except PackageNotFoundError:
            continue
        for entry in entries:
            if Path(entry.name).suffix.lower() in SUFFIXES:
                yield entry.name, entry.locate().read_bytes()
