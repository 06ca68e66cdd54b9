"""A small picture of a few scores: each image with its own, and how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .. import ranking
from .contact_sheet import BACKGROUND, MARGIN, QUIET, Picture, contact_sheet, format_score
from .page import histogram

SHOWN = 48  # images of a preview: more could not be told apart in a node
WIDTH = 720  # pixels: a node shows it smaller still, and the numbers are to be read there
HEIGHT = 120  # pixels of the histogram
BAR = (96, 165, 250)


def score_preview(
    pictures: Sequence[Picture], scores: Sequence[float], *, title: str = ""
) -> Image.Image:
    """The best 48 images with their ranks, scores and numbers (from 0), above a histogram of all.

    Args:
        pictures: at least one, in the order of the scores.
        scores: one a picture; NaN is drawn as "no score".
    """
    order = ranking.sort(list(scores)).tolist()
    shown = order[:SHOWN]
    more = f", the best {SHOWN} of {len(order)}" if len(order) > SHOWN else ""
    sheet = contact_sheet(
        [pictures[i] for i in shown],
        [scores[i] for i in shown],
        names=[f"image {i}" for i in shown],
        title=title + more,
        width=WIDTH,
    )
    finite = [score for score in scores if math.isfinite(score)]
    return stack(sheet, draw_histogram(finite, sheet.width)) if len(finite) > 2 else sheet


def draw_histogram(scores: Sequence[float], width: int, height: int = HEIGHT) -> Image.Image:
    """Counts of at least one finite score, with the lowest, median and highest written below."""
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    plot, across = height - 2 * MARGIN, width - 2 * MARGIN
    for bar in histogram(scores).bars:
        left = MARGIN + bar.x * across / 1000
        top = MARGIN / 2 + plot * (1 - bar.height / 100)
        right = left + max(1, bar.width * across / 1000)
        draw.rectangle((left, top, right, MARGIN / 2 + plot), BAR)
    ordered = sorted(scores)
    words = {
        "la": f"lowest {format_score(ordered[0])}",
        "ma": f"median {format_score(ordered[len(ordered) // 2])}",
        "ra": f"highest {format_score(ordered[-1])}",
    }
    for (anchor, text), x in zip(words.items(), (MARGIN, width / 2, width - MARGIN), strict=True):
        draw.text((x, MARGIN / 2 + plot + 4), text, QUIET, font, anchor=anchor)
    return picture


def stack(above: Image.Image, below: Image.Image) -> Image.Image:
    """Two pictures as one; the upper one's width is not less."""
    both = Image.new("RGB", (above.width, above.height + below.height), BACKGROUND)
    both.paste(above)
    both.paste(below, (0, above.height))
    return both
