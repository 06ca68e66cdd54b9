"""The report file: complete, self-contained, safe against names, and written whole or not at all."""

import base64
import io
import itertools
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tastemaker.report import Row, Scores
from tastemaker.report import page as report_module
from tastemaker.report.page import histogram, split_rows, write_report
from tastemaker.scorers import ScorerCard

CARD = ScorerCard(
    name="brightness", licence="MIT", unit="mean pixel", range=(0.0, 1.0), limits="Sees only light."
)

EVIL = [
    '"><script>alert(1)<!script>.png',
    "' onerror=alert(1) x='.png",
    "<img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "&lt;b&gt;&amp;.png",
    "日本語 é \u202egnp.exe.png",
    "--><!--.png",
    " leading and trailing .png ",
]


class Page(HTMLParser):
    """Every element of a page: (tag, attributes), and the text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, **wanted) -> list[dict]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and all(attributes.get(k.strip("_")) == v for k, v in wanted.items())
        ]

    @property
    def cards(self) -> list[dict]:
        return self.all("li", class_="card")


@pytest.fixture
def pictures(tmp_path):
    """Rows of pictures with given names, each a little darker than the last."""

    def make(names, size=(40, 30)):
        rows = []
        (tmp_path / "pictures").mkdir(exist_ok=True)
        for i, name in enumerate(names):
            path = tmp_path / "pictures" / name
            Image.new("RGB", size, (200 - i, 0, 0)).save(path, "PNG")
            rows.append(Row(path, 0.9 - i / 100))
        return rows

    return make


def scores_of(rows, card=CARD) -> Scores:
    return Scores(rows, CARD.name, CARD.fingerprint_id, card)


def report(rows, path, **options) -> Page:
    write_report(path, scores_of(rows), **{"title": "a set", **options})
    return Page(path)


def test_ranks_scores_percentiles_and_names(pictures, tmp_path):
    rows = pictures(["a.png", "b.png", "c.png", "d.png"])
    page = report(rows[::-1], tmp_path / "report.html")
    assert [card["data-path"] for card in page.cards] == [str(row.path) for row in rows]
    assert [float(card["data-score"]) for card in page.cards] == [row.score for row in rows]
    labels = [button["aria-label"] for button in page.all("button", class_="pick")]
    assert labels[0] == "Keep a.png, rank 1, score 0.900"
    percentiles = [span.get("title", "") for span in page.all("span", class_="quiet")]
    assert [text for text in percentiles if text] == [
        f"Percentile: above {p} % of the scores" for p in (88, 62, 38, 12)
    ]
    assert "4 pictures ranked by brightness" in page.text and "Sees only light." in page.text


def test_names_cannot_break_out(pictures, tmp_path):
    rows = pictures(EVIL)
    rows += [Row(Path(name + "/x"), math.nan, name) for name in EVIL]
    page = report(
        rows, tmp_path / "report.html", title="".join(EVIL) + "</title></script><script>alert(2)"
    )
    assert [card["data-path"] for card in page.cards] == [
        str(row.path) for row in rows[: len(EVIL)]
    ]
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    allowed = {"data-path", "data-uri", "data-score"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "x" not in attributes or tag == "rect"
        assert {name for name in attributes if name.startswith("data-")} <= allowed
    assert "49" not in page.text.split("ranked by")[0]
    for name in EVIL:
        assert name in page.text


def test_nothing_is_loaded_from_elsewhere(pictures, tmp_path):
    page = report(pictures(["a.png", "b.png"]), tmp_path / "report.html")
    sources = [
        e[key] for _, e in page.elements for key in ("src", "srcset", "data", "action") if key in e
    ]
    assert len(sources) == 2 and all(
        source.startswith("data:image/webp;base64,") for source in sources
    )
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    style = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(#kept-side)" in style and style.count("url(") == 1 and "@import" not in style
    meta = {
        attributes.get("http-equiv"): attributes["content"]
        for attributes in page.all("meta")
        if "content" in attributes
    }
    policy = meta["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data: file:;") and "unsafe" not in policy
    nonce = page.all("script")[0]["nonce"]
    assert f"script-src 'nonce-{nonce}'" in policy and page.all("style")[0]["nonce"] == nonce
    assert nonce != report([], tmp_path / "other.html").all("script")[0]["nonce"]


@pytest.mark.parametrize("size", [(1000, 100), (100, 1000), (20, 20), (289, 288)])
def test_thumbnails_are_small_and_undistorted(pictures, tmp_path, size):
    page = report(pictures(["a.png"], size), tmp_path / "report.html")
    image = page.all("img", loading="lazy")[0]["src"].split(",")[1]
    with Image.open(io.BytesIO(base64.b64decode(image))) as thumbnail:
        width, height = thumbnail.size
    scale = min(1, 288 / max(size))
    assert abs(width - size[0] * scale) <= 1 and abs(height - size[1] * scale) <= 1


def test_pictures_without_a_score_are_listed_with_the_reason(pictures, tmp_path):
    rows = pictures(["a.png"])
    rows += [
        Row(Path("broken.png"), math.nan, "damaged picture: broken.png"),
        Row(Path("bytes\udcff.png"), math.nan, "damaged picture: bytes\udcff.png"),
        Row(Path("endless.png"), math.inf),
    ]
    page = report(rows, tmp_path / "report.html")
    assert len(page.cards) == 1
    assert "damaged picture: broken.png" in page.text and "its score is inf" in page.text
    assert "damaged picture: bytes?.png" in page.text
    assert "3 without a score" in page.text


def test_names_that_no_list_can_hold_are_ranked_and_told(pictures, tmp_path):
    names = [
        "two\nlines.png",
        "a.png",
        "two\u2028lines.png",
        "two\rlines.png",
        os.fsdecode(b"\xff.png"),
    ]
    try:
        rows = pictures(names)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    page = report(rows, tmp_path / "report.html")
    assert ["data-unlisted" in card for card in page.cards] == [True, False, True, True, True]
    assert len(page.all("img", loading="lazy")) == 5 and "without a score" not in page.text
    assert "4 pictures cannot be put into a saved list" in page.text
    assert page.cards[4]["data-uri"].endswith("/%FF.png")
    one = report(rows[:2], tmp_path / "report.html")
    assert "1 picture cannot be put into a saved list" in one.text and "Rename it" in one.text
    hidden = report(rows[1:], tmp_path / "report.html", limit=1)
    assert "cannot be put into" not in hidden.text


def test_a_picture_that_has_gone_since_it_was_scored_is_still_ranked(pictures, tmp_path):
    rows = pictures(["a.png", "b.png"])
    os.unlink(rows[0].path)
    page = report(rows, tmp_path / "report.html")
    assert len(page.cards) == 2 and len(page.all("img", loading="lazy")) == 1
    assert "cannot be opened" in page.text


def test_the_limit_shows_the_best_and_says_so(pictures, tmp_path):
    rows = pictures([f"{i}.png" for i in range(5)])
    page = report(rows[::-1], tmp_path / "report.html", limit=3)
    assert [card["data-path"] for card in page.cards] == [str(row.path) for row in rows[:3]]
    assert "The best 3 are shown" in page.text and "5 pictures ranked" in page.text
    whole = report(rows, tmp_path / "report.html", limit=5)
    assert "are shown" not in whole.text.split("const")[0]


@pytest.mark.parametrize("keep", [0, 1, 3, 5, 9])
def test_the_report_opens_with_the_best_kept(pictures, tmp_path, keep):
    rows = pictures([f"{i}.png" for i in range(5)])
    page = report(rows, tmp_path / "report.html", keep=keep)
    threshold = float(page.text.split("fresh = {threshold: ")[1].split(",")[0])
    assert sum(row.score >= threshold for row in rows) == min(keep, 5)


def test_scores_of_an_export_have_no_card(pictures, tmp_path):
    scores = scores_of(pictures(["a.png"]), card=None)
    write_report(tmp_path / "report.html", scores, title="a set")
    page = Page(tmp_path / "report.html")
    assert "1 picture ranked by brightness" in page.text and CARD.fingerprint_id in page.text
    assert "Sees only light." not in page.text


def test_no_pictures_at_all(tmp_path):
    page = report([], tmp_path / "report.html")
    assert page.cards == [] and "0 pictures ranked" in page.text
    assert page.all("input", id="threshold") == []


def test_picks_are_remembered_for_this_ranking_only(pictures, tmp_path):
    def key(page):
        return page.text.split('storageKey = "tastemaker:')[1].split('"')[0]

    rows = pictures(["a.png", "b.png", "c.png"])
    first = key(report(rows, tmp_path / "report.html"))
    assert key(report(rows, tmp_path / "again.html", title="other", keep=2)) == first
    assert key(report(rows[:2], tmp_path / "report.html")) != first
    swapped = [Row(rows[0].path, 0.1), *rows[1:]]
    assert key(report(swapped, tmp_path / "report.html")) != first


def test_a_failure_leaves_the_old_report_and_no_rubbish(pictures, tmp_path, monkeypatch):
    rows = pictures([f"{i}.png" for i in range(40)])
    out = tmp_path / "out"
    out.mkdir()
    write_report(out / "report.html", scores_of(rows), title="old")
    old = (out / "report.html").read_bytes()

    def full(path):
        if path.name == "30.png":
            raise OSError(28, "No space left on device")
        return "data:image/webp;base64,"

    monkeypatch.setattr(report_module, "_thumbnail", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(out / "report.html", scores_of(rows), title="new")
    assert [p.name for p in out.iterdir()] == ["report.html"]
    assert (out / "report.html").read_bytes() == old


def test_thumbnails_are_made_only_a_little_ahead():
    begun = []

    def make(i):
        begun.append(i)
        return -i

    made = report_module._ahead(make, itertools.count())
    assert [next(made) for _ in range(100)] == [-i for i in range(100)]
    made.close()
    assert len(begun) <= 100 + 4 * 16 + 2


scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50)


@given(scores)
def test_the_histogram_holds_every_score_between_its_ends(values):
    low, high, bars = histogram(values)
    assert low < min(values) and max(values) < high
    assert 1 <= len(bars) <= len(set(values))
    assert max(bar.height for bar in bars) == 96
    assert all(0 <= bar.x and bar.x + bar.width <= 1000 and 2 <= bar.height for bar in bars)
    for value in values:  # each score lies in a bar, as high as it is drawn
        x = (value - low) / (high - low) * 1000
        assert any(bar.x - 0.02 <= x <= bar.x + bar.width / 0.9 + 0.02 for bar in bars)


def test_histogram_counts():
    assert histogram([]) is None
    bars = histogram([0.0, 0.0, 0.0, 0.0, 1.0]).bars
    assert [bar.height for bar in bars] == [96, 24]


@given(st.lists(st.floats(allow_nan=True), max_size=30))
def test_every_row_is_either_ranked_or_listed(values):
    rows = [Row(Path(f"{i}.png"), value) for i, value in enumerate(values)]
    ranked, failed = split_rows(rows)
    assert sorted(int(row.path.stem) for row in ranked + failed) == list(range(len(rows)))
    assert all(a.score >= b.score for a, b in itertools.pairwise(ranked))
    assert all(not math.isfinite(values[int(row.path.stem)]) for row in failed)
