"""Pictures of a comparison and of a video: every image whole, the bar where the probability says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tastemaker.report.panels import (
    FRAMES,
    PAIRS,
    WINNER,
    Pair,
    comparison,
    filmstrip,
    percent,
    tag_counts,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def solid(colour, size=(120, 80)) -> Image.Image:
    return Image.new("RGB", size, colour)


def box(sheet: Image.Image, colour) -> tuple[int, int, int, int]:
    """left, top, width, height of all pixels of a colour."""
    y, x = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1


@pytest.mark.parametrize("size", [(120, 80), (2000, 500), (30, 900)])
def test_a_is_left_and_b_right_and_neither_is_distorted(size):
    sheet = comparison([Pair(solid(RED, size), solid(BLUE, (64, 64)), 1.0, 2.0, 0.3)], "title")
    a, b = box(sheet, RED), box(sheet, BLUE)
    assert a[0] + a[2] <= b[0] and b[2:] == (64, 64)
    scale = min(1, 448 / max(size))
    assert a[2:] == pytest.approx([side * scale for side in size], abs=1)


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.6, 0.99])
def test_the_bar_is_as_long_as_the_greater_probability(probability):
    pair = Pair(solid(RED), solid(BLUE), math.nan, math.nan, probability)
    left, _, width, _ = box(comparison([pair]), WINNER)
    assert width == pytest.approx(904 * max(probability, 1 - probability), abs=4)
    assert (left < 30) == (probability > 0.5)


def test_what_has_no_probability_has_no_winner():
    sheet = comparison([Pair(solid(RED), solid(BLUE), math.nan, math.nan, math.nan)])
    assert not (np.asarray(sheet) == WINNER).all(-1).any()


def test_of_many_pairs_the_first_are_drawn():
    pair = Pair(solid(RED), solid(BLUE), 1.0, 0.0, 0.7)
    heights = [comparison([pair] * n).height for n in (1, PAIRS, PAIRS + 1, 100)]
    assert heights[0] < heights[1] == heights[2] == heights[3]


def test_every_pair_is_drawn_once():
    pairs = [Pair(solid((255, i, 0)), solid((i, 0, 255)), 1.0, 0.0, 0.7) for i in range(1, 6)]
    sheet = comparison(pairs)
    for pair in pairs:
        for picture in (pair.a, pair.b):
            assert box(sheet, picture.getpixel((0, 0)))[2:] == (120, 80)


@pytest.mark.parametrize("n", [1, 3, 8, 9, FRAMES])
def test_a_filmstrip_has_every_frame_in_order(n):
    colours = [(255, i, 255 - i) for i in range(n)]
    sheet = filmstrip([solid(colour) for colour in colours], ["x"] * n, "title")
    places = [box(sheet, colour) for colour in colours]
    assert {place[2:] for place in places} == {(120, 80)}
    assert [place[1::-1] for place in places] == sorted(place[1::-1] for place in places)


def test_of_many_frames_some_are_shown_first_and_last_among_them():
    colours = [(255, i, 0) for i in range(200)]
    sheet = np.asarray(filmstrip([solid(colour) for colour in colours], [""] * 200))
    found = {tuple(int(v) for v in pixel) for pixel in sheet.reshape(-1, 3)} & set(colours)
    assert len(found) == FRAMES and {colours[0], colours[-1]} <= found


@given(st.floats(0, 1))
def test_only_what_is_certain_is_called_so(probability):
    text = percent(probability)
    assert (text == "100 %") == (probability == 1) and (text == "0 %") == (probability == 0)


def test_bars_are_as_long_as_the_counts():
    chart = (np.asarray(tag_counts({"best": 4, "worst": 1, "x" * 99: 0})) == WINNER).all(-1)
    lengths = chart.sum(1)
    assert set(lengths) == {0, 321, 81}
    assert not (np.asarray(tag_counts({"only": 0})) == WINNER).all(-1).any()
