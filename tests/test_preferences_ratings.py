"""Mean opinion scores, and rankings: against scipy, and curves whose parameters are known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr, spearmanr

from tastemaker.preferences.ratings import (
    fit_logistic,
    logistic,
    rating_metrics,
    read_ratings,
)
from tastemaker.preferences.strengths import (
    connected,
    ranked_by_comparisons,
    ranking_metrics,
    strengths,
)

# Metrics


@pytest.mark.parametrize("levels", [None, 5])  # 5: with many ties
def test_scipy_agrees(levels):
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    x = y + rng.normal(size=300)
    if levels:
        y = np.round(y * levels / 4)
    found, intervals, _ = rating_metrics(x, y, rounds=100)
    assert found["srcc"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["krcc"] == pytest.approx(kendalltau(x, y).statistic)
    assert found["plcc"] == pytest.approx(pearsonr(x, y).statistic)
    for name, value in found.items():
        low, high = intervals[name]
        assert low < value < high


def test_by_hand():
    found, _, _ = rating_metrics([1, 2, 3, 4], [10, 30, 20, 40], rounds=10)
    assert found["srcc"] == pytest.approx(0.8)
    assert found["krcc"] == pytest.approx(4 / 6)  # 5 pairs in order, 1 not
    assert found["plcc"] == pytest.approx(0.8)


@settings(max_examples=30)
@given(
    st.floats(10, 1000), st.floats(-100, 100), st.floats(-5, 5), st.floats(0.3, 3),
    st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
@example(rise=10.0, floor=8.0, middle=5.0, width=0.3, unit=1e-3)  # ties at its lower end
def test_the_logistic_is_found_again(rise, floor, middle, width, unit):
    x = np.linspace(-8, 8, 60)
    y = logistic(x, floor + rise, floor, middle, width)
    fitted = fit_logistic(x * unit, y)
    np.testing.assert_allclose(logistic(x * unit, *fitted), y, atol=rise * 1e-4)
    found, _, _ = rating_metrics(x * unit, y, rounds=1)
    assert found["plcc_logistic"] == pytest.approx(1, abs=1e-6)
    assert found["plcc_logistic"] >= found["plcc"] - 1e-9
    assert found["rmse"] <= rise * 1e-4
    assert found["srcc"] == pytest.approx(spearmanr(x, y).statistic)  # its flat ends may be ties


def test_the_logistic_is_the_nearest_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = logistic(x, 90, 10, 0.2, 0.5) + rng.normal(size=200) * 5
    fitted = np.array(fit_logistic(x, y))

    def loss(b):
        return ((logistic(x, *b) - y) ** 2).sum()

    assert fitted == pytest.approx([90, 10, 0.2, 0.5], rel=0.1, abs=3)
    for i in range(4):
        for factor in (0.99, 1.01):
            moved = fitted.copy()
            moved[i] *= factor
            assert loss(moved) > loss(fitted)
    found, _, curve = rating_metrics(x, y, rounds=1)
    assert found["rmse"] == pytest.approx(math.sqrt(loss(fitted) / 200)) and curve == tuple(fitted)


def test_a_scorer_the_wrong_way_round_is_not_made_to_look_good():
    x = np.linspace(-3, 3, 50)
    found, _, _ = rating_metrics(x, -x, rounds=1)
    assert found["srcc"] == pytest.approx(-1) and found["plcc"] == pytest.approx(-1)
    assert math.isnan(found["plcc_logistic"]) or found["plcc_logistic"] <= 0
    assert found["rmse"] == pytest.approx(np.std(x), rel=1e-3)  # no better than a constant


@pytest.mark.parametrize("x", [[1, 1, 1, 1, 1], [1.0], [], [1, 2, 3]])
def test_too_little_gives_nan(x):
    found, intervals, curve = rating_metrics(x, range(len(x)), rounds=5)
    assert curve is None and math.isnan(found["plcc_logistic"]) and math.isnan(found["rmse"])
    assert all(math.isnan(low) or low <= high for low, high in intervals.values())
    if len(set(x)) < 2:
        assert all(map(math.isnan, found.values()))
    with pytest.raises(ValueError, match="finite and as many"):
        rating_metrics([1.0, math.nan], [1, 2])


def test_what_to_install_is_said(monkeypatch):
    for part in ("stats", "optimize"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, f"scipy.{part}", None)
            with pytest.raises(ImportError, match=r'pip install "tastemaker\[train\]"'):
                rating_metrics([1, 2, 3, 5], [1, 2, 3, 4])


# Rankings from comparisons


def test_strengths_are_the_most_probable():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=30) * 2
    pairs = rng.integers(30, size=(6000, 2))
    d = truth[pairs[:, 0]] - truth[pairs[:, 1]]
    p = (rng.random(6000) < 1 / (1 + np.exp(-d))).astype(float)
    found = strengths(pairs, p, 30)
    assert found == pytest.approx(truth - truth.mean(), abs=0.5)
    metrics, intervals, n = ranked_by_comparisons(truth, pairs, p, rounds=50)
    assert metrics["spearman"] > 0.97 and metrics["kendall"] > 0.9 and n == 30
    assert intervals["kendall"][0] <= metrics["kendall"] <= intervals["kendall"][1]
    # Whichever side was left, and a vote as a probability, is the same evidence.
    assert strengths(pairs[:, ::-1], 1 - p, 30) == pytest.approx(found, abs=1e-4)


def test_one_that_always_wins_has_a_finite_strength_and_a_tie_none():
    won = strengths([[0, 1]], [1], 2)
    assert 0 < won[0] == -won[1] < 5
    # Of one comparison, by hand: s = a / 2, 1 - sigmoid(a) = PRIOR a / 2.
    a = 2 * won[0]
    assert 1 / (1 + math.exp(a)) == pytest.approx(0.25 * a / 2, abs=1e-6)
    assert strengths([[0, 1]], [0.5], 2) == pytest.approx([0, 0])


def test_only_what_is_connected_is_ranked():
    pairs = [[0, 1], [1, 2], [2, 3], [4, 5]]
    assert connected(pairs, 7).tolist() == [0, 1, 2, 3]
    metrics, _, n = ranked_by_comparisons([4, 3, 2, 1, 0, 9, 5], pairs, [1, 1, 1, 1], rounds=5)
    assert n == 4 and metrics == {"spearman": pytest.approx(1), "kendall": pytest.approx(1)}
    nothing, intervals, n = ranked_by_comparisons([1, 2], [[0, 1]], [1], rounds=5)
    assert n == 2 and math.isnan(nothing["kendall"]) and math.isnan(intervals["spearman"][0])


def test_rankings_of_nothing_are_no_number():
    assert all(map(math.isnan, ranking_metrics([1, 1], [1, 2]).values()))
    assert all(map(math.isnan, ranking_metrics([1], [1]).values()))
    with pytest.raises(ValueError, match="same images"):
        ranking_metrics([1, 2], [1])


# Files


def table(folder: Path, text: str, name: str = "ratings.csv") -> Path:
    for image in ("a.png", "b.png", "c.png"):
        (folder / image).touch()
    (folder / name).write_text(text, encoding="utf-8-sig")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "image,score\na.png,1\nb.png,2.5\n",
        '"image_name","c1","c2","MOS","SD"\na.png,0,1,1,9\nb.png,3,4,2.5,9\n',  # KonIQ-10k
        "Image name,MOS\na.png,1\nb.png,2.5\n",  # SPAQ
        "dist_img,ref_img,dmos,var\na.png,c.png,1,9\nb.png,c.png,2.5,9\n",  # KADID-10k
        "name,prompt,style,mos_quality,std_quality,mos_align\n"
        'a.png,"x, y",s,1,9,9\nb.png,z,s,2.5,9,9\n',  # AGIQA-3K
        "Image name;MOS\na.png;1\n\nb.png;2,5\n",  # a spreadsheet's export, with decimal commas
        "path\trating\na.png\t1\nb.png\t2.5\n",
    ],
)
def test_the_usual_columns_are_found(tmp_path, text):
    found = read_ratings(table(tmp_path, text))
    assert found.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert found.values.tolist() == [1, 2.5] and found.rows == 2


def test_columns_and_folder_can_be_named(tmp_path):
    (tmp_path / "in").mkdir()
    table(tmp_path / "in", "")
    path = table(tmp_path, "image,first,second,score\na.png,1,7,3\nb.png,2,8,4\n")
    found = read_ratings(path, root=tmp_path / "in", score_column="second", lower_is_better=True)
    assert found.images[0] == tmp_path / "in" / "a.png" and found.values.tolist() == [-7, -8]
    assert found.columns == ("image", "second")


def test_several_ratings_of_an_image_are_their_mean(tmp_path):
    found = read_ratings(table(tmp_path, "image,score\na.png,1\nb.png,2\n./a.png,4\n"))
    assert found.values.tolist() == [2.5, 2] and found.rows == 3 and len(found.images) == 2


@pytest.mark.parametrize(
    ("text", "how", "words"),
    [
        (
            "picture,score\n",
            {},
            r"is the image\? Give --image-column \(columns: picture, score; a file of ",
        ),
        (
            "image,c1,c2\n",
            {},
            r"is the score\? Give --score-column \(columns: image, c1, c2; a file of ",
        ),
        ("image,score\n", {"score_column": "MOS"}, r"no column 'MOS' \(columns: image, score\)"),
        ("image,score\n", {}, "no ratings in"),
        ("", {}, "is the image"),
        (
            "image,score\na.png,1\nb.png,good\n",
            {},
            "line 3 of .*score must be a number, got 'good'",
        ),
        ("image,score\na.png,inf\n", {}, "must be a number, got 'inf'"),
        ("image,score\na.png,nan\nb.png,\n", {}, "no ratings in"),
        ("image,score\na.png\n", {}, "line 2 of .* has no image and score"),
        ("image,score\nx.png,1\n", {}, "no such file: .*x.png: give the images' folder, --root"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, text, how, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_ratings(table(tmp_path, text), **how)


def test_a_spreadsheet_is_to_be_exported(tmp_path):
    for start in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        (tmp_path / "a.xlsx").write_bytes(start + b"\0" * 99)
        with pytest.raises(ValueError, match="is a spreadsheet: save it as CSV first"):
            read_ratings(tmp_path / "a.xlsx")


# Parts of a file

PARTS = """image_name,MOS,set,scene
a.png,1,training,in
b.png,2,test,in
c.png,3,test,out
d.png,,validation,out
"""


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ([("set", "test")], "bc"),
        ([("set", "test"), ("scene", "out")], "c"),
        ([("set", "training"), ("set", "test")], "abc"),
    ],
)
def test_only_the_rows_that_are_asked_for(tmp_path, where, names):
    found = read_ratings(table(tmp_path, PARTS), where=where)  # d has no rating: nobody asked
    assert [path.stem for path in found.images] == list(names)
    assert found.rows == len(names) and found.left_out == 4 - len(names) and not found.splits


@given(st.lists(st.sampled_from(["test", "training", "Test", " test", ""]), min_size=1))
def test_parts_are_exact_and_add_up(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("parts")
    lines = [f"{i}.png,{i},{part}" for i, part in enumerate(parts)]
    path = table(folder, "\n".join(["image,score,set", *lines]))
    (folder / "0.png").touch()
    for i in range(len(parts)):
        (folder / f"{i}.png").touch()
    rows = 0
    for value in {part.strip() for part in parts}:
        found = read_ratings(path, where=[("set", value)])
        assert {parts[int(image.stem)].strip() for image in found.images} == {value}
        assert found.rows + found.left_out == len(parts)
        rows += found.rows
    assert rows == len(parts)


def test_a_part_that_is_not_there_names_those_that_are(tmp_path):
    path = table(tmp_path, PARTS)
    with pytest.raises(ValueError, match=r"no column 'Set' \(columns: image_name, MOS, set, scene"):
        read_ratings(path, where=[("Set", "test")])
    told = r"has set=TEST: set is test \(2\), training \(1\), validation \(1\)$"
    with pytest.raises(ValueError, match=told):
        read_ratings(path, where=[("set", "TEST")])
    with pytest.raises(ValueError, match="has set=training, scene=out: set is .*; scene is in"):
        read_ratings(path, where=[("set", "training"), ("scene", "out")])


def test_what_looks_like_a_split_is_noticed(tmp_path):
    path = table(tmp_path, "image,score,Split,name\na.png,1,train,x\nb.png,2,test,y\n")
    assert read_ratings(path).splits == {"Split": {"train": 1, "test": 1}}
    for text in ("image,score,split\na.png,1,x\nb.png,2,x\n", "image,score\na.png,1\nb.png,2\n"):
        assert not read_ratings(table(tmp_path, text)).splits


def test_a_cell_without_end_is_said(tmp_path):
    path = table(tmp_path, f"image,score\na.png,1\n{'b' * 140_000},2\n")
    with pytest.raises(ValueError, match=r"^line 3 of .*ratings.csv is not CSV: field larger"):
        read_ratings(path)
