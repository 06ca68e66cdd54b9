"""The picture of a decision: everyone is there, the rejected look it, the line is where it was drawn."""

import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from tastemaker.report.selection import KEPT, REJECTED, draw_cut, framed, selection_preview


def solid(colour: str, size=(200, 200)) -> Image.Image:
    return Image.new("RGB", size, colour)


COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan"]


def count(picture: Image.Image, colour) -> int:
    """Pixels of exactly that colour."""
    return int((np.array(picture) == np.array(colour)).all(-1).sum())


def test_kept_keep_their_colours_and_rejected_lose_them():
    pictures = [solid(colour) for colour in COLOURS]
    sheet = selection_preview(pictures, [5, 4, 3, 2, 1, 0], [0, 2], [1, 3, 4, 5])
    for i, colour in enumerate(COLOURS):
        found = count(sheet, ImageColor.getrgb(colour))
        assert found == (200 * 200 if i in (0, 2) else 0), colour
    assert count(sheet, REJECTED) > 4 * 100  # crosses


def test_a_rejected_picture_is_dark_grey_and_crossed():
    shown = np.array(framed(solid("white"), kept=False)).astype(int)
    plain = shown[100:, :100]
    assert (plain == plain[..., :1]).all() and plain.max() < 140
    assert count(Image.fromarray(shown.astype(np.uint8)), REJECTED) > 50


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 40)])
def test_pictures_of_any_shape(size):
    sheet = selection_preview([solid("red", size)] * 3, [1, 2, 3], [2], [1, 0])
    assert sheet.width > 100


def lines(picture: Image.Image, colour) -> list[int]:
    """x of every column that is that colour over more than half of the histogram."""
    columns = (np.array(picture)[44:130] == np.array(colour)).all(-1).sum(0)
    return np.flatnonzero(columns > 40).tolist()


def test_the_cut_and_the_marks_are_where_the_scores_are():
    scores = [i / 100 for i in range(101)]
    picture = draw_cut(scores, 1048, 0.5, [(0.25, False), (0.75, True), (math.nan, False)])
    assert np.mean(lines(picture, REJECTED)) == pytest.approx(24 + 250, abs=12)
    assert np.mean(lines(picture, KEPT)) == pytest.approx(24 + 750, abs=12)
    assert np.mean(lines(picture, (244, 244, 245))) == pytest.approx(24 + 500, abs=12)


@pytest.mark.parametrize("cut", [-math.inf, math.inf, -100.0, 100.0, 0.0])
def test_any_cut(cut):
    picture = draw_cut([0.0, 0.5, 1.0], 300, cut, [(-5.0, True), (5.0, False), (math.inf, True)])
    assert picture.width == 300


def test_some_of_both_are_shown_of_many():
    kept, rejected = [solid("red", (8, 8))] * 100, [solid("white", (8, 8))] * 100
    scores = [float(200 - i) for i in range(200)]
    sheet = selection_preview(kept + rejected, scores, list(range(100)), list(range(100, 200)))
    assert count(sheet, (255, 0, 0)) == 24 * 144**2  # tiny ones are enlarged
    few = selection_preview(kept + rejected, scores, list(range(100)), [100, 101])
    assert count(few, (255, 0, 0)) == 46 * 144**2


def test_without_three_scores_there_is_no_histogram():
    tall = selection_preview([solid("red")] * 3, [1.0, 2.0, 3.0], [2], [1, 0])
    flat = selection_preview([solid("red")] * 3, [1.0, math.nan, 3.0], [2], [0, 1])
    assert tall.height > flat.height


def test_a_record_stands_in_for_the_scores():
    alone = selection_preview([solid("red")], [0.4], [0], [], record=[0.1, 0.2, 0.9], cut=0.3)
    assert count(alone, KEPT) > 50  # pointed at
    assert count(selection_preview([solid("red")], [0.4], [0], []), KEPT) == 0
