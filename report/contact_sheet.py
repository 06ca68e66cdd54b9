"""A contact sheet: ranked pictures in one grid, each with its rank, score and name."""

from __future__ import annotations

import math
import os
import statistics
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..scorers.decode import MAX_PIXELS, as_rgb
from ..scorers.video import is_video, read_video

Picture = str | os.PathLike | Image.Image

MOST = 500  # pictures on one sheet: more could not be told apart
WIDTH = 1920  # pixels that the grid aims at by default
CELL = (150, 400)  # least and greatest width of a picture: below, the numbers become illegible
TINY = 64  # pixels: what is no larger could hardly be seen, and is enlarged
GAP, MARGIN = 8, 24

BACKGROUND, EMPTY = (24, 24, 27), (39, 39, 42)
TEXT, QUIET = (244, 244, 245), (161, 161, 170)


def contact_sheet(
    pictures: Sequence[Picture],
    scores: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    title: str = "",
    columns: int | None = None,
    width: int = WIDTH,
) -> Image.Image:
    """Draws pictures in the given order, none distorted or cropped, and only tiny ones enlarged.

    Args:
        pictures: 1 to 500 paths or PIL images, best first. One that cannot be opened becomes a
            placeholder.
        scores: one a picture; NaN is drawn as "no score".
        names: drawn under the pictures; by default the files' names, none for PIL images.
        ranks: by default 1, 2, 3...
        title: one line above the grid.
        columns: by default chosen so that the sheet is about 3:2.
        width: pixels to aim at. In a narrow sheet, texts are large beside the pictures.

    Returns:
        An RGB image of about that width; wider where many columns are asked for.
    """
    n = len(pictures)
    names = [_name(picture) for picture in pictures] if names is None else names
    ranks = range(1, n + 1) if ranks is None else ranks
    if not 1 <= n <= MOST:
        raise ValueError(f"a contact sheet holds 1 to {MOST} pictures, got {n}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    for what, values in (("scores", scores), ("names", names), ("ranks", ranks)):
        if len(values) != n:
            raise ValueError(f"{n} pictures but {len(values)} {what}")

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        sizes = list(pool.map(_size_or_none, pictures))
        grid = _grid(sizes, columns, any(names), width)
        cells = pool.map(lambda picture: _thumbnail_or_none(picture, grid.cell), pictures)
        sheet = Image.new("RGB", grid.size, BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        draw.text((MARGIN, MARGIN), fit(title, grid.title, grid.width), TEXT, grid.title)
        for i, thumbnail in enumerate(cells):
            corner = grid.corner(i)
            _draw_picture(sheet, draw, grid, corner, thumbnail)
            _draw_caption(draw, grid, corner, f"#{ranks[i]}", format_score(scores[i]), names[i])
    return sheet


def format_score(score: float) -> str:
    """At most three decimals."""
    return "no score" if math.isnan(score) else f"{score:.3f}"


def open_thumbnail(picture: Picture, box: tuple[int, int]) -> Image.Image:
    """The upright RGB picture, shrunk (never enlarged) to fit into `box` (width, height).

    Alpha is dropped: what is seen is what is scored. Of animations and videos, the first frame.
    Raises OSError or ValueError for a picture that cannot be opened.
    """
    if isinstance(picture, Image.Image):
        return _shrink(picture, box)
    if is_video(picture):
        first = read_video(picture, frames=1)[0]
        return _shrink(Image.fromarray(first.permute(1, 2, 0).numpy()), box)
    with Image.open(picture) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"too large to open safely: {picture}")
        file.draft("RGB", (max(box) * 2, max(box) * 2))  # JPEG decodes small pictures faster
        return _shrink(file, box)


def _shrink(picture: Image.Image, box: tuple[int, int]) -> Image.Image:
    rgb = as_rgb(ImageOps.exif_transpose(picture))
    rgb = rgb.copy() if rgb is picture else rgb  # `thumbnail` works in place
    rgb.thumbnail(box, Image.Resampling.LANCZOS, reducing_gap=3)
    return rgb


def enlarged(picture: Image.Image, box: tuple[int, int]) -> Image.Image:
    """A tiny picture by the greatest whole number with which it fits, each pixel becoming a square."""
    width, height = picture.size
    factor = min(box[0] // width, box[1] // height) if max(width, height) <= TINY else 1
    if factor < 2:
        return picture
    return picture.resize((factor * width, factor * height), Image.Resampling.NEAREST)


def _thumbnail_or_none(picture: Picture, box: tuple[int, int]) -> Image.Image | None:
    try:
        return enlarged(open_thumbnail(picture, box), box)
    except Exception:  # whatever a broken file makes a decoder raise belongs to that file
        return None


def _size_or_none(picture: Picture) -> tuple[int, int] | None:
    """Upright (width, height), from a file's header alone."""
    try:
        if isinstance(picture, Image.Image):
            return _upright_size(picture)
        with Image.open(picture) as file:
            return _upright_size(file)
    except Exception:
        return None


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    sideways = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the orientation tag
    return (height, width) if sideways else (width, height)


class _Grid(NamedTuple):
    """Where everything goes, in pixels."""

    columns: int
    rows: int
    cell: tuple[int, int]  # width and height of a picture's box
    lines: int  # of text under it
    font: ImageFont.FreeTypeFont
    title: ImageFont.FreeTypeFont

    @property
    def line(self) -> int:
        return round(self.font.size * 1.4)

    @property
    def pitch(self) -> tuple[int, int]:
        return self.cell[0] + GAP, self.cell[1] + self.lines * self.line + 2 * GAP

    @property
    def width(self) -> int:
        return self.columns * self.pitch[0] - GAP

    @property
    def top(self) -> int:
        return MARGIN + round(self.title.size * 2)

    @property
    def size(self) -> tuple[int, int]:
        return self.width + 2 * MARGIN, self.top + self.rows * self.pitch[1] - GAP + MARGIN

    def corner(self, i: int) -> tuple[int, int]:
        row, column = divmod(i, self.columns)
        return MARGIN + column * self.pitch[0], self.top + row * self.pitch[1]


def _grid(
    sizes: Sequence[tuple[int, int] | None], columns: int | None, named: bool, aim: int
) -> _Grid:
    """The boxes' shape is the median picture's, so that most pictures fill theirs."""
    known = [size for size in sizes if size and 0 not in size] or [(CELL[1], CELL[1])]
    shape = statistics.median(height / width for width, height in known)
    shape = min(2.0, max(0.5, shape))
    columns = columns or _columns(len(sizes), shape)
    least, greatest = CELL
    largest = max(max(width, round(height / shape)) for width, height in known)
    width = max(least, min(greatest, largest, aim // columns - GAP))
    font = ImageFont.load_default(max(13, min(18, width // 14)))
    title = ImageFont.load_default(22)
    cell = (width, round(width * shape))
    return _Grid(columns, math.ceil(len(sizes) / columns), cell, 1 + named, font, title)


def _columns(n: int, shape: float) -> int:
    """Columns of `n` boxes of height / width `shape` that make a sheet of 3:2, the last row filled."""
    columns = min(16, n, math.ceil(math.sqrt(n * 1.5 * shape)))
    return math.ceil(n / math.ceil(n / columns))


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    grid: _Grid,
    corner: tuple[int, int],
    thumbnail: Image.Image | None,
) -> None:
    (x, y), (width, height) = corner, grid.cell
    draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
    if thumbnail is not None:
        left = x + (width - thumbnail.width) // 2
        sheet.paste(thumbnail, (left, y + (height - thumbnail.height) // 2))
        return
    draw.line((x, y, x + width, y + height), BACKGROUND, 2)
    draw.line((x, y + height, x + width, y), BACKGROUND, 2)
    middle = (x + width // 2, y + height // 2)
    draw.text(middle, "cannot be opened", QUIET, grid.font, anchor="mm")


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    grid: _Grid,
    corner: tuple[int, int],
    rank: str,
    score: str,
    name: str,
) -> None:
    """Rank left and score right under the picture, the name below them."""
    x, y = corner[0], corner[1] + grid.cell[1] + GAP // 2
    draw.text((x, y), rank, QUIET, grid.font)
    draw.text((x + grid.cell[0] - 1, y), score, TEXT, grid.font, anchor="ra")
    if name:
        draw.text((x, y + grid.line), fit(name, grid.font, grid.cell[0]), QUIET, grid.font)


def _name(picture: Picture) -> str:
    return "" if isinstance(picture, Image.Image) else Path(picture).name


def fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` within `width` pixels, its middle left out: file names differ at their ends."""
    # The embedded font has no accents, and a line break would not be a line.
    folded = unicodedata.normalize("NFKD", text)
    text = "".join(c if c.isprintable() else "?" for c in folded if not unicodedata.combining(c))
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the most characters kept that still fit
    while low < high:
        keep = (low + high + 1) // 2
        low, high = (keep, high) if font.getlength(_elide(text, keep)) <= width else (low, keep - 1)
    return _elide(text, low)


def _elide(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return text[:head] + "..." + text[len(text) - (keep - head) :]
