"""The report of ways side by side."""

import base64
import io
import math
import re

import pytest
from PIL import Image

from tastemaker.report.side_by_side import Made, Way, means, write_side_by_side

WAYS = [Way("plain", "20 calls"), Way("best", "320 calls")]


def picture(colour, size=(3, 2)):
    return Image.new("RGB", size, colour)


def written(folder, rows, **named):
    write_side_by_side(folder / "page.html", WAYS, rows, title="A title", **named)
    return (folder / "page.html").read_text(encoding="utf-8")


def test_pictures_come_unchanged_and_in_their_columns(tmp_path):
    made = [Made(picture((i, 2, 3)), {"score": float(i)}) for i in (1, 9)]
    html = written(tmp_path, {"a row": made})
    found = re.findall(r'<td><img src="data:image/png;base64,([^"]+)" alt="(\w+): a row"', html)
    assert [name for _, name in found] == ["plain", "best"]
    for (data, _), one in zip(found, made, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.tobytes() == one.picture.tobytes()


def test_the_best_of_each_row_and_of_the_means_is_marked(tmp_path):
    rows = {
        "one": [Made(picture(0), {"score": 1.0}), Made(picture(0), {"score": 5.0})],
        "two": [Made(picture(0), {"score": 2.0}), Made(picture(0), {"score": math.nan})],
    }
    html = written(tmp_path, rows)
    marked = re.findall(r'<dd class="best">([^<]+)</dd>', html)
    assert [float(x) for x in marked] == [5.0, 2.0, 1.5]


def test_means():
    rows = [[Made(None, {"a": 1.0, "b": 0.0})], [Made(None, {"a": 4.0, "b": math.nan})]]
    (mean,) = means(rows)
    assert mean["a"] == 2.5 and math.isnan(mean["b"])


def test_a_row_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'short' has 1 pictures for 2 columns"):
        written(tmp_path, {"short": [Made(picture(0), {})]})
    assert not list(tmp_path.iterdir())


def test_hostile_names_stay_text(tmp_path):
    hostile = '<script>alert("x")</script>'
    rows = {hostile: [Made(picture(0), {hostile: 1.0})] * 2}
    html = written(tmp_path, rows, about=[hostile], figures={hostile: picture(0)})
    assert "<script" not in html and "&lt;script&gt;" in html


def test_nothing_to_show_is_a_page_too(tmp_path):
    assert "A title" in written(tmp_path, {})
