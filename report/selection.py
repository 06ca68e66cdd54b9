"""A picture of a decision: what is kept and what is rejected, and where the line was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from .. import ranking
from .contact_sheet import (
    BACKGROUND,
    CELL,
    MARGIN,
    TEXT,
    contact_sheet,
    enlarged,
    format_score,
)
from .page import histogram
from .preview import HEIGHT, SHOWN, WIDTH, draw_histogram, stack

KEPT, REJECTED = (74, 222, 128), (248, 113, 113)


def selection_preview(
    pictures: Sequence[Image.Image],
    scores: Sequence[float],
    kept: Sequence[int],
    rejected: Sequence[int],
    *,
    title: str = "",
    ranks: Sequence[int] | None = None,
    notes: Sequence[str] | None = None,
    record: Sequence[float] | None = None,
    cut: float | None = None,
) -> Image.Image:
    """Up to 48 pictures, those kept first and the rejected dimmed and crossed, above a histogram.

    Args:
        pictures, scores: one another's; NaN is "no score". At least one.
        kept, rejected: their indices, in the order in which they are shown.
        ranks: by default the scores' order, from 1.
        notes: a line under each picture; by default its number, from 0.
        record: what the histogram shows; by default the scores, which are then not marked in it.
        cut: the score from which on images are kept; by default the lowest that was.
    """
    shown = _shown(kept, rejected)
    ranks = _ranks(scores) if ranks is None else ranks
    notes = [f"image {i}" for i in range(len(scores))] if notes is None else notes
    keeps = set(kept)
    hidden = len(scores) - len(shown)
    sheet = contact_sheet(
        [framed(pictures[i], i in keeps) for i in shown],
        [scores[i] for i in shown],
        names=[notes[i] for i in shown],
        ranks=[ranks[i] for i in shown],
        title=f"{title}, {len(shown)} of them shown" if hidden else title,
        width=WIDTH,
    )
    known = [s for s in (scores if record is None else record) if math.isfinite(s)]
    if len(known) < 3:
        return sheet
    if cut is None:
        cut = min((scores[i] for i in kept), default=math.inf) if rejected else -math.inf
    marks = [] if record is None else [(scores[i], i in keeps) for i in range(len(scores))]
    return stack(sheet, draw_cut(known, sheet.width, cut, marks))


def framed(picture: Image.Image, kept: bool) -> Image.Image:
    """As it is shown: dimmed, without its colours and crossed if it was rejected."""
    small = picture.copy()
    small.thumbnail((CELL[1], CELL[1]), Image.Resampling.LANCZOS, reducing_gap=3)
    small = enlarged(small, (CELL[0], CELL[0]))  # or the cross would be of its large pixels
    if kept:
        return small
    dim = ImageEnhance.Brightness(ImageOps.grayscale(small).convert("RGB")).enhance(0.5)
    draw, side = ImageDraw.Draw(dim), max(8, min(dim.size) // 6)
    left, top, width = dim.width - side - side // 3, side // 3, max(2, side // 7)
    draw.line((left, top, left + side, top + side), REJECTED, width)
    draw.line((left, top + side, left + side, top), REJECTED, width)
    return dim


def draw_cut(
    scores: Sequence[float],
    width: int,
    cut: float,
    marks: Sequence[tuple[float, bool]] = (),
) -> Image.Image:
    """The histogram of at least one finite score, its part below `cut` dimmed.

    Args:
        cut: an infinite one leaves nothing, or everything, below.
        marks: scores that are pointed at, and whether each is kept; NaN is left out.
    """
    picture, shape = draw_histogram(scores, width), histogram(scores)
    # Two lines more: for what is pointed at, and for the cut's number.
    tall = Image.new("RGB", (width, HEIGHT + 44), BACKGROUND)
    tall.paste(picture, (0, 44))

    def across(score: float) -> float:
        part = (score - shape.low) / (shape.high - shape.low)
        return MARGIN + min(1.0, max(0.0, part)) * (width - 2 * MARGIN)

    bottom = tall.height - 1.5 * MARGIN
    if cut > shape.low:
        box = (MARGIN, 44, round(across(cut)), round(bottom))
        tall.paste(ImageEnhance.Brightness(tall.crop(box)).enhance(0.4), box)
    draw, font = ImageDraw.Draw(tall), ImageFont.load_default(16)
    for score, kept in sorted(mark for mark in marks if not math.isnan(mark[0])):
        x = across(score)
        draw.polygon((x - 7, 28, x + 7, 28, x, 42), KEPT if kept else REJECTED)
        draw.line((x, 42, x, bottom), KEPT if kept else REJECTED, 2)
    if math.isfinite(cut):
        x = across(cut)
        draw.line((x, 24, x, bottom), TEXT, 2)
        words = f"kept from {format_score(cut)}"
        half = font.getlength(words) / 2
        place = min(max(x, MARGIN + half), width - MARGIN - half)
        draw.text((place, 4), words, TEXT, font, anchor="ma")
    return tall


def _shown(kept: Sequence[int], rejected: Sequence[int]) -> list[int]:
    """At most `SHOWN`, some of both."""
    share = max(SHOWN // 2, SHOWN - len(rejected))
    chosen = list(kept[:share])
    return chosen + list(rejected[: SHOWN - len(chosen)])


def _ranks(scores: Sequence[float]) -> list[int]:
    ranks = [0] * len(scores)
    for place, i in enumerate(ranking.sort(list(scores)).tolist()):
        ranks[i] = place + 1
    return ranks
