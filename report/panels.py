"""Small pictures that explain a judgement: two images and who wins, and the frames of a video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import (
    BACKGROUND,
    EMPTY,
    GAP,
    MARGIN,
    QUIET,
    TEXT,
    fit,
    format_score,
    open_thumbnail,
)

PAIRS = 12  # shown of many
BOX = (448, 448)  # pixels of a compared image
FRAMES = 24  # shown of many
FRAME = (260, 260)
WINNER, LOSER = (45, 212, 191), (82, 82, 91)
LINE = 30  # pixels of a line of text
TAGS, BARS = 240, 320  # pixels of the names of tags, and of the longest bar


class Pair(NamedTuple):
    """Two images compared; NaN where there is no score or no probability."""

    a: Image.Image
    b: Image.Image
    score_a: float
    score_b: float
    probability: float  # of A winning


def comparison(pairs: Sequence[Pair], title: str = "") -> Image.Image:
    """A left, B right, with their scores, and a bar divided by the win probability below.

    Args:
        pairs: at least one; the first 12 are drawn.
    """
    shown, font = pairs[:PAIRS], ImageFont.load_default(18)
    more = f", the first {PAIRS} of {len(pairs)}" if len(pairs) > PAIRS else ""
    rows = [_pair(pair, font) for pair in shown]
    if len(rows) > 3:  # two abreast, or the picture would be far higher than a node
        rows = [_beside(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return _stacked(rows, title + more)


def filmstrip(
    frames: Sequence[Image.Image], captions: Sequence[str], title: str = "", columns: int = 4
) -> Image.Image:
    """Frames in order, row by row, each with a caption under it; 24 spread over more.

    Args:
        frames: at least one.
        captions: one a frame.
    """
    if len(frames) > FRAMES:
        chosen = [round(i * (len(frames) - 1) / (FRAMES - 1)) for i in range(FRAMES)]
        frames, captions = [frames[i] for i in chosen], [captions[i] for i in chosen]
    columns = min(columns, len(frames))
    thumbnails = [open_thumbnail(frame, FRAME) for frame in frames]
    width, height = (max(t.size[side] for t in thumbnails) for side in (0, 1))
    pitch, font = (width + GAP, height + LINE), ImageFont.load_default(15)
    rows = math.ceil(len(frames) / columns)
    grid = Image.new("RGB", (columns * pitch[0] - GAP, rows * pitch[1]), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for i, (thumbnail, caption) in enumerate(zip(thumbnails, captions, strict=True)):
        x, y = i % columns * pitch[0], i // columns * pitch[1]
        _centre(grid, draw, thumbnail, (x, y), (width, height))
        draw.text((x + width / 2, y + height + 4), caption, QUIET, font, anchor="ma")
    return _stacked([grid], title)


def tag_counts(counts: Mapping[str, int], title: str = "") -> Image.Image:
    """A bar for each tag, in the order given, with its name and count."""
    font, most = ImageFont.load_default(18), max(1, *counts.values())
    chart = Image.new("RGB", (TAGS + BARS + 80, LINE * len(counts)), BACKGROUND)
    draw = ImageDraw.Draw(chart)
    for i, (name, count) in enumerate(counts.items()):
        y, length = i * LINE, round(BARS * count / most)
        draw.text((0, y + LINE // 2), fit(name, font, TAGS - GAP), TEXT, font, anchor="lm")
        if count:
            draw.rectangle((TAGS, y + 5, TAGS + length, y + LINE - 5), WINNER)
        draw.text((TAGS + length + GAP, y + LINE // 2), str(count), QUIET, font, anchor="lm")
    return _stacked([chart], title)


def _pair(pair: Pair, font: ImageFont.FreeTypeFont) -> Image.Image:
    pictures = [open_thumbnail(picture, BOX) for picture in (pair.a, pair.b)]
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (2 * BOX[0] + GAP, height + 2 * LINE + GAP), BACKGROUND)
    draw = ImageDraw.Draw(row)
    scores = (pair.score_a, pair.score_b)
    for name, picture, score, other, x in zip(
        "AB", pictures, scores, scores[::-1], (0, BOX[0] + GAP), strict=True
    ):
        _centre(row, draw, picture, (x, 0), (BOX[0], height))
        wins = score > other or (math.isnan(other) and not math.isnan(score))
        ends = (x, x + BOX[0] - 1)
        draw.text((ends[0], height + 6), name, WINNER if wins else QUIET, font)
        draw.text((ends[1], height + 6), format_score(score), TEXT, font, anchor="ra")
    _draw_bar(draw, (0, height + LINE, row.width - 1, height + 2 * LINE), pair.probability, font)
    return row


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width = 2 * pictures[0].width + MARGIN
    both = Image.new("RGB", (width, max(picture.height for picture in pictures)), BACKGROUND)
    for i, picture in enumerate(pictures):
        both.paste(picture, (i * (picture.width + MARGIN), 0))
    return both


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    probability: float,
    font: ImageFont.FreeTypeFont,
) -> None:
    """A's share from the left, B's from the right, the greater in colour."""
    left, top, right, bottom = box
    draw.rectangle(box, EMPTY)
    middle = ((left + right) // 2, (top + bottom) // 2)
    if math.isnan(probability):
        draw.text(middle, "no win probability", QUIET, font, anchor="mm")
        return
    cut = left + round(probability * (right - left))
    draw.rectangle((left, top, cut, bottom), WINNER if probability >= 0.5 else LOSER)
    draw.rectangle((cut, top, right, bottom), WINNER if probability <= 0.5 else LOSER)
    draw.line((cut, top, cut, bottom), BACKGROUND, 3)
    texts = (f"A wins {percent(probability)}", f"B wins {percent(1 - probability)}")
    for text, x, anchor, share in zip(
        texts, (left + 8, right - 8), ("lm", "rm"), (probability, 1 - probability), strict=True
    ):
        if font.getlength(text) + 16 < share * (right - left):
            draw.text((x, middle[1]), text, BACKGROUND if share >= 0.5 else TEXT, font, anchor)


def percent(probability: float) -> str:
    """Whole percents, and never 0 % or 100 % for what is not certain."""
    text = f"{probability:.0%}".replace("%", " %")
    uncertain = {"0 %": "< 1 %", "100 %": "> 99 %"} if 0 < probability < 1 else {}
    return uncertain.get(text, text)


def _centre(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    (x, y), (width, height) = corner, size
    draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
    sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))


def _stacked(rows: Sequence[Image.Image], title: str) -> Image.Image:
    """Rows of one width under a title, with a margin around."""
    font, top = ImageFont.load_default(22), MARGIN + 2 * LINE - GAP
    width = max(max(row.width for row in rows), round(font.getlength(title)))
    height = sum(row.height + MARGIN for row in rows)
    sheet = Image.new("RGB", (width + 2 * MARGIN, top + height), BACKGROUND)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), title, TEXT, font)
    for row in rows:
        sheet.paste(row, (MARGIN, top))
        top += row.height + MARGIN
    return sheet
