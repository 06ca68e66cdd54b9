"""Reading uniform frames of videos, whole and broken."""

import errno
import os
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.scorers import video
from tastemaker.scorers.video import (
    VIDEO_SUFFIXES,
    capped_size,
    is_video,
    read_video,
    uniform_indices,
)

av = pytest.importorskip("av")


def write(path, count, codec="mpeg4", size=(48, 64), prepare=None, **options):
    """A video whose frame i is grey of brightness 8 i + 4, with a white left half on top."""
    height, width = size
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 8_000_000  # near lossless
        if prepare:
            prepare(stream)
        for i in range(count):
            pixels = np.full((height, width, 3), 8 * (i % 31) + 4, np.uint8)
            pixels[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames):
    """Which frame of `write` each is, from its lower right quarter."""
    height, width = frames.shape[2:]
    corner = frames[:, :, height // 2 + 4 :, width // 2 + 4 :].float().mean((1, 2, 3))
    return ((corner - 4) / 8).round().int().tolist()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "mpeg4"), ("a.MOV", "mpeg4")],
)
def test_uniform_frames_first_and_last_included(tmp_path, name, codec):
    path = write(tmp_path / name, 30, codec)
    frames = read_video(path)
    assert frames.shape == (8, 3, 48, 64) and frames.dtype == torch.uint8
    assert brightness(frames) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert is_video(path)


def test_fewer_frames_than_wanted_repeat(tmp_path):
    assert brightness(read_video(write(tmp_path / "a.mp4", 3), 5)) == [0, 0, 1, 2, 2]
    assert brightness(read_video(write(tmp_path / "b.mp4", 1), 2)) == [0, 0]
    assert brightness(read_video(tmp_path / "a.mp4", 1)) == [0]


@given(st.integers(1, 500), st.integers(1, 40))
def test_uniform_indices(total, count):
    indices = uniform_indices(total, count)
    assert len(indices) == count and indices == sorted(indices)
    assert indices[0] == 0 and (count == 1 or indices[-1] == total - 1)
    steps = np.diff(indices)
    assert count == 1 or steps.max() - steps.min() <= 1
    assert uniform_indices(total, None) == list(range(total))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_capped_size(height, width, side):
    h, w = capped_size(height, width, side)
    assert 1 <= h <= height and 1 <= w <= width and max(h, w) <= side
    if max(height, width) <= side:
        assert (h, w) == (height, width)
    else:
        assert max(h, w) >= side - 1
    assert capped_size(height, width, None) == (height, width)


def test_a_wrong_count_of_frames_is_put_right(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 20)
    real = video._count
    for wrong in (-7, 9):
        monkeypatch.setattr(video, "_count", lambda av, path, wrong=wrong: real(av, path) + wrong)
        assert brightness(read_video(path, 3)) == [0, 10, 19]


def test_rotated_videos_come_upright(tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    plain = read_video(write(tmp_path / "plain.mp4", 4), 1)
    turn = lambda stream: stream.set_display_rotation(-90)  # noqa: E731 - a phone held upright
    turned = read_video(write(tmp_path / "turned.mp4", 4, prepare=turn), 1)
    assert turned.shape == (1, 3, 64, 48)
    assert torch.equal(turned, plain.rot90(-1, (2, 3)))


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Only the wanted frames are kept, of 50 times as many."""
    short = write(tmp_path / "short.mp4", 4, size=(240, 320))
    long = write(tmp_path / "long.mp4", 200, size=(240, 320))
    peaks = []
    for path in (short, long):
        tracemalloc.start()
        read_video(path, 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + 1_000_000


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def broken(tmp_path, kind):
    path = tmp_path / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no video\n" * 100)
    elif kind == "without its index":  # which stands at the end
        cut(write(path, 30), 0.6)
    elif kind == "cut off behind its index":
        cut(write(path, 30, size=(240, 320), movflags="faststart"), 0.6)
    elif kind == "cut off, counting its frames":
        path = cut(write(tmp_path / "bad.avi", 60, size=(240, 320)), 0.6)
    elif kind == "cut off, stating its length":
        path = cut(write(tmp_path / "bad.mkv", 60, size=(240, 320)), 0.6)
    elif kind == "sound only":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            silence = np.zeros((1, 1024), np.float32)
            for _ in range(20):
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate = 44100
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_errors_of_the_system_are_no_damage(number, tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(av, "open", lambda *_: av.error.err_check(-number, "a.mp4"))
    with pytest.raises(OSError, match="cannot be read now: .*a.mp4") as caught:
        read_video(path)
    assert os.strerror(number) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "damaged video"),
        ("text", "damaged video"),
        ("without its index", "damaged video|no video in it"),
        ("cut off behind its index", "damaged video|cut off"),
        ("cut off, counting its frames", "cut off"),
        ("cut off, stating its length", "cut off"),
        ("sound only", "no video in it"),
    ],
)
def test_broken_videos_are_named(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as caught:
        read_video(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_video_and_a_folder(tmp_path):
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_video(path)


def test_the_count_of_frames_is_checked(tmp_path):
    with pytest.raises(ValueError, match="frames must be at least 1"):
        read_video(write(tmp_path / "a.mp4", 2), 0)


def test_without_pyav_the_command_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "tastemaker\[video\]"'):
        read_video(path)


def test_is_video_goes_by_the_suffix():
    assert all(is_video(f"a{suffix.upper()}") for suffix in VIDEO_SUFFIXES)
    assert not any(is_video(name) for name in ("a.png", "a.gif", "mp4", "a.mp4.json"))
