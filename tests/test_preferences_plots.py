"""What an evaluation draws, and the drawer itself: where ink is, and that it is of the data."""

import math

import numpy as np
import pytest
from PIL import ImageChops

from tastemaker.preferences.plots import calibration_plot, pair_plots, ratings_plot
from tastemaker.preferences.ratings import fit_logistic
from tastemaker.report import plot as drawer
from tastemaker.report.plot import plot

BLUE, ORANGE = drawer.COLOURS[:2]


def votes(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=count)
    return d, (rng.random(count) < 1 / (1 + np.exp(-d))).astype(float)


def share(picture, colour) -> float:
    pixels = np.asarray(picture).reshape(-1, 3)
    return float((np.abs(pixels - np.array(colour)).max(1) < 40).mean())


def test_there_is_a_picture_of_what_there_is():
    d, p = votes(300)
    plain = {"accuracy_by_difference", "risk_coverage"}
    assert set(pair_plots(d, p, tau=None)) == plain
    assert set(pair_plots(d, p, name="nano")) == plain | {"calibration"}
    with_distance = pair_plots(d, p, distance=np.arange(300.0))
    assert set(with_distance) == plain | {"calibration", "accuracy_by_distance"}
    for picture in with_distance.values():
        assert picture.size == (900, 480) and share(picture, BLUE) > 1e-3
    assert pair_plots(*votes(19)) == pair_plots([1.0] * 50, [0.5] * 50) == {}


@pytest.mark.parametrize("count", [20, 25, 60])
def test_few_comparisons_are_drawn_too(count):
    for picture in pair_plots(*votes(count), distance=np.zeros(count)).values():
        assert share(picture, BLUE) > 1e-4


def test_a_calibrated_scorer_lies_on_the_line_and_a_bold_one_below():
    confidence = np.random.default_rng(0).uniform(0.5, 1, 20_000)
    right = (np.random.default_rng(1).random(20_000) < confidence).astype(float)
    bold = (np.random.default_rng(1).random(20_000) < 0.5).astype(float)
    rows = []
    for each in (right, bold):
        picture = np.asarray(calibration_plot(confidence, each, "a"))
        blue = np.abs(picture - np.array(BLUE)).max(2)[50:420] < 40
        rows.append(np.argwhere(blue))
    (up, across), (_, _) = (rows[0] - rows[0].mean(0)).T, (rows[1] - rows[1].mean(0)).T
    assert np.corrcoef(up, across)[0, 1] < -0.9  # pixels count downwards: it rises
    assert rows[1][:, 0].std() < rows[0][:, 0].std() / 2


def test_ratings_are_a_cloud_with_a_line_through_it():
    y = np.random.default_rng(0).normal(size=500)
    x = np.tanh(y)
    cloud, with_line = ratings_plot(x, y, None), ratings_plot(x, y, fit_logistic(x, y), "a", "MOS")
    assert share(cloud, BLUE) > 0.005 and share(cloud, ORANGE) == 0
    assert share(with_line, ORANGE) > 0.001
    assert share(ratings_plot(np.ones(3), np.ones(3), None), BLUE) > 0


def test_bars_and_guides_have_room():
    curve = {"a": [(0, 0.5), (1, 0.6)]}
    bare = plot(curve)
    assert ImageChops.difference(bare, plot(curve, bars={"a": [(0, 0.1, 0.9)]})).getbbox()
    barred = plot(curve, bars={"a": [(0.5, -3.0, 9.0)]})
    assert share(barred, BLUE) < share(bare, BLUE) * 2  # not cut off: the axis grew
    blue = np.argwhere(np.abs(np.asarray(barred) - np.array(BLUE)).max(2)[:424] < 60)
    assert 300 < np.ptp(blue[:, 0]) < 424 - 48
    assert plot({}, guides={"only": [(0, 0), (1, 1)]}).size == (900, 480)
    assert plot({"a": [(0, math.nan), (1, 2)]}, bars={"a": [(0, math.nan, 1)]})
    with pytest.raises(ValueError, match="nothing to plot"):
        plot({"a": []}, dots={"b": [(math.inf, 1)]})


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.1, 11.4, [0, 2, 4, 6, 8, 10]),
        (0.48, 1.02, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        (-1e-6, 1e-6, [-1e-6, -5e-7, 0, 5e-7, 1e-6]),
        (1000, 51_000, [10_000, 20_000, 30_000, 40_000, 50_000]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert drawer._ticks(low, high) == pytest.approx(expected)


def test_nothing_is_told_between_whole_numbers(monkeypatch):
    told = []
    monkeypatch.setattr(drawer, "_ticks", lambda *axis, least=0.0: told.append(least) or [])
    plot({"rounds": [(0, 0.5), (1, 0.7), (2, 0.8)]})
    plot({"shares": [(0, 0.5), (0.5, 0.7), (1, 0.8)]})
    assert told == [0.0, 1.0, 0.0, 0.0]
    monkeypatch.undo()
    assert drawer._ticks(-0.1, 2.1, least=1.0) == [0, 1, 2]
