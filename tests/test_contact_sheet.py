"""The contact sheet: every picture once, in order, whole and undistorted, whatever the pictures."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tastemaker.report.contact_sheet import (
    BACKGROUND,
    MOST,
    TINY,
    contact_sheet,
    enlarged,
    open_thumbnail,
)


def colour(i: int) -> tuple[int, int, int]:
    """Colours that the sheet itself does not use: strong, one a picture."""
    return (255, i % 256, i // 256)


def solid(i: int, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, colour(i))


def places(sheet: Image.Image, n: int) -> list[tuple[int, int, int, int]]:
    """left, top, width, height of each picture on the sheet: all of its pixels, and nothing else."""
    pixels = np.asarray(sheet).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] == 255)  # nothing else is so red
    numbers = pixels[rows, columns, 1] + 256 * pixels[rows, columns, 2]
    found = []
    for i in range(n):
        y, x = rows[numbers == i], columns[numbers == i]
        assert len(y), f"picture {i} is not on the sheet"
        left, top, width, height = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
        assert len(y) == width * height, f"picture {i} is not one rectangle"
        found.append((left, top, width, height))
    return found


sizes = st.tuples(st.integers(20, 900), st.integers(20, 900))


@settings(deadline=None, max_examples=25)
@given(st.lists(sizes, min_size=1, max_size=12), st.none() | st.integers(1, 5))
def test_every_picture_is_whole_undistorted_and_in_order(shapes, columns):
    pictures = [solid(i, size) for i, size in enumerate(shapes)]
    sheet = contact_sheet(pictures, [0.5] * len(pictures), columns=columns)
    found = places(sheet, len(pictures))
    for (width, height), (_, _, w, h) in zip(shapes, found, strict=True):
        scale = w / width if width > height else h / height
        tiny = max(width, height) <= TINY
        assert scale <= 1 or (tiny and scale == int(scale)), "enlarged"
        assert abs(w - width * scale) <= 1 and abs(h - height * scale) <= 1, "distorted"
    centres = [(top + h / 2, left + w / 2) for left, top, w, h in found]
    for (y, x), (below, right) in itertools.pairwise(centres):  # reading order
        assert below > y + 20 or (abs(below - y) < 2 and right > x)


def test_tiny_pictures_are_enlarged_pixel_by_pixel():
    tiny = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8))
    shown = enlarged(tiny, (150, 150))
    assert shown.size == (96, 128)
    assert np.array_equal(np.asarray(shown), np.asarray(tiny).repeat(4, 0).repeat(4, 1))
    ((_, _, width, height),) = places(contact_sheet([solid(0, (32, 32))], [0.5]), 1)
    assert (width, height) == (128, 128)
    assert enlarged(solid(0, (TINY + 1, 8)), (400, 400)).size == (TINY + 1, 8)
    assert enlarged(solid(0, (TINY, 8)), (100, 100)).size == (TINY, 8)


@pytest.mark.parametrize("n", [1, 2, 3, 24, MOST])
def test_any_number_of_pictures(n):
    sheet = contact_sheet([solid(i, (64, 48)) for i in range(n)], [i / n for i in range(n)])
    assert len({place[:2] for place in places(sheet, n)}) == n
    assert sheet.mode == "RGB" and max(sheet.size) < 10_000


def test_the_sheet_is_landscape_and_its_last_row_nearly_full():
    sheet = contact_sheet([solid(i, (64, 64)) for i in range(24)], [0.0] * 24)
    tops = [top for _, top, _, _ in places(sheet, 24)]
    assert sheet.width > sheet.height
    assert sorted(tops.count(top) for top in set(tops)) == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(pictures=[], scores=[]), "1 to 500 pictures, got 0"),
        (dict(pictures=["a"] * (MOST + 1), scores=[0.0] * (MOST + 1)), "got 501"),
        (dict(pictures=["a"], scores=[]), "1 pictures but 0 scores"),
        (dict(pictures=["a"], scores=[1.0], names=["a", "b"]), "1 pictures but 2 names"),
        (dict(pictures=["a"], scores=[1.0], ranks=[1, 2]), "1 pictures but 2 ranks"),
        (dict(pictures=["a"], scores=[1.0], columns=0), "columns must be at least 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(**kwargs)


def test_a_broken_picture_is_a_placeholder(tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    good = [solid(0, (200, 200)), solid(1, (200, 200))]
    sheet = contact_sheet(
        [good[0], tmp_path / "broken.png", tmp_path / "absent.png", good[1]], [0.9, 0.8, 0.7, 0.6]
    )
    blank = Image.new("RGB", (200, 200))
    whole = contact_sheet([good[0], blank, blank, good[1]], [0.9, 0.8, 0.7, 0.6], names=["x"] * 4)
    assert places(sheet, 2) == places(whole, 2)
    only = contact_sheet([tmp_path / "broken.png"], [float("nan")])
    assert only.size[0] >= 150


@pytest.mark.parametrize(
    "name", ["x" * 400, "long name " * 50, "日本語の長い名前" * 30, "a\nb\tc\0d\udcff", "é́́"]
)
def test_a_name_stays_under_its_picture(name):
    pictures = [solid(i, (160, 160)) for i in range(2)]
    sheet = np.asarray(
        contact_sheet(pictures, [0.5, 0.4], names=[name, name], title=name, columns=2)
    )
    (left, top, width, height), (right, *_) = places(Image.fromarray(sheet), 2)
    under = sheet[top + height :]
    assert (under[:, left : left + width] != BACKGROUND).any(), "nothing was written"
    # A letter may overhang by a pixel.
    ends = [0, left - 1, left + width + 1, right - 1, right + width + 1, sheet.shape[1]]
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        assert (under[:, start:stop] == BACKGROUND).all()


def test_rank_score_and_name_are_drawn():
    def drawn(**changes):
        arguments = dict(
            pictures=[solid(0, (160, 160))], scores=[0.5], names=["a.png"], title="nano"
        )
        return contact_sheet(**{**arguments, **changes}).tobytes()

    sheets = [drawn(), drawn(scores=[0.6]), drawn(scores=[float("nan")]), drawn(names=["b.png"])]
    sheets += [drawn(ranks=[7]), drawn(title="rali")]
    assert len(set(sheets)) == len(sheets)


def test_files_are_upright_and_pil_images_stay_as_they_are(tmp_path):
    sideways = Image.new("RGB", (80, 40), colour(0))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    assert open_thumbnail(tmp_path / "sideways.png", (100, 100)).size == (40, 80)
    assert places(contact_sheet([tmp_path / "sideways.png"], [1.0]), 1)[0][2:] == (40, 80)

    picture = solid(0, (500, 300))
    assert open_thumbnail(picture, (100, 100)).size == (100, 60)
    assert picture.size == (500, 300)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_every_mode_has_a_thumbnail(mode):
    thumbnail = open_thumbnail(Image.new(mode, (300, 200)), (60, 60))
    assert (thumbnail.mode, thumbnail.size) == ("RGB", (60, 40))


def test_a_video_is_shown_by_its_first_frame(tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 160, "yuv420p"
        for grey in (200, 20, 20, 20):
            frame = av.VideoFrame.from_ndarray(np.full((160, 320, 3), grey, np.uint8), "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    thumbnail = open_thumbnail(tmp_path / "clip.mp4", (80, 80))
    assert thumbnail.size == (80, 40) and abs(thumbnail.getpixel((40, 20))[0] - 200) < 12
    contact_sheet([tmp_path / "clip.mp4"], [0.5])
