"""Every kind of picture that users have, and every kind that is none."""

import errno
import io
import os
import socket
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tastemaker.scorers.decode import decode


def gradient(width=40, height=30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "YCbCr", "HSV"])
def test_modes_become_rgb_as_pillow_does(mode, tmp_path):
    picture = gradient().convert(mode)
    assert torch.equal(decode(picture), pixels(picture))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_files_equal_their_pil_images(suffix, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    gradient().save(path)
    with Image.open(path) as picture:
        expected = pixels(picture)
    assert torch.equal(decode(path), expected)
    assert torch.equal(decode(str(path)), expected)


def test_palette_with_transparency():
    picture = gradient().convert("P")
    picture.info["transparency"] = 0
    assert torch.equal(decode(picture), pixels(picture.convert("RGBA")))


def test_alpha_is_dropped_not_blended():
    picture = gradient().convert("RGBA")
    picture.putalpha(0)
    assert torch.equal(decode(picture), pixels(gradient()))


def test_16_bit_is_scaled_not_clipped(tmp_path):
    wide = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    path = tmp_path / "wide.png"
    Image.fromarray(wide).save(path)
    expected = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert torch.equal(decode(path), expected.expand(3, 16, 16))


def test_floating_point_picture_is_refused():
    with pytest.raises(ValueError, match="floating-point picture"):
        decode(Image.new("F", (8, 8)))


@pytest.mark.parametrize("kind, reason", [("F", "floating-point"), ("I", "outside 16 bits")])
def test_a_whole_file_of_a_kind_that_is_not_read_is_unsupported(kind, reason, tmp_path):
    Image.new(kind, (8, 8), 70_000).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=f"unsupported picture: .*x.tiff .*{reason}") as caught:
        decode(tmp_path / "x.tiff")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENFILE, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("where", ["PIL.Image.open", "PIL.ImageOps.exif_transpose"])
def test_errors_of_the_system_are_no_damage(number, where, tmp_path, monkeypatch):
    def raises(*_):
        raise OSError(number, os.strerror(number))

    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr(where, raises)
    with pytest.raises(OSError, match=r"cannot be read now: .*a\.png \(") as caught:
        decode(tmp_path / "a.png")
    assert os.strerror(number) in str(caught.value) and "\n" not in str(caught.value)


def test_a_seek_to_nowhere_is_damage(tmp_path, monkeypatch):
    def raises(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raises)
    with pytest.raises(ValueError, match="damaged picture"):
        decode(tmp_path / "a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_special_files_are_named_and_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sockets take short names only
    os.mkfifo("pipe.png")
    os.symlink("pipe.png", "link.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    expected = {"pipe.png": "named pipe", "link.png": "named pipe", "socket.png": "socket"}
    for name, kind in {**expected, "/dev/null": "device"}.items():
        with pytest.raises(ValueError, match=rf"unsupported picture: {name} \(a {kind}\)"):
            decode(name)


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    gradient(40, 30).save(path, exif=exif)
    assert decode(path).shape == (3, 40, 30)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(suffix, tmp_path):
    path = tmp_path / f"animated.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#0000ff")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    red = decode(path)[:, 4, 4].tolist()
    assert red[0] > 250 and red[2] < 5


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), "white").save(tmp_path / "one.png")
    assert decode(tmp_path / "one.png").shape == (3, 1, 1)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_file_is_named(suffix, keep, tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * keep)])
    with pytest.raises(ValueError, match="cut") as caught:
        decode(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [b"\x01\x02\x00\x05", b"\x01\x10\x00\x05", b"\x01\x1a\x00\x02"])
def test_damaged_exif_is_named(entry, tmp_path):
    """A tag or type that one wrong byte turned into another: what Pillow raises is no OSError."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0  # to turn it, Pillow writes the other tags anew
    damaged = exif.tobytes().replace(b"\x01\x1a\x00\x05", entry)
    assert damaged != exif.tobytes()
    gradient().save(tmp_path / "exif.jpg", exif=damaged)
    with pytest.raises(ValueError, match=r"damaged picture: .*exif\.jpg") as caught:
        decode(tmp_path / "exif.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        struct.error,
        AttributeError,
        OverflowError,
        KeyError,
        ZeroDivisionError,
        IndexError,
        EOFError,
    ],
)
def test_whatever_a_decoder_raises_is_one_line(error, tmp_path, monkeypatch):
    def raises(*_):
        raise error("two\nlines")

    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", raises)
    with pytest.raises(ValueError, match=r"damaged picture: .*a\.png \(.*two") as caught:
        decode(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_text_named_png(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"not a picture: .*text\.png"):
        decode(tmp_path / "text.png")


def test_empty_missing_and_folder(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"not a picture: .*empty\.png"):
        decode(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.png"):
        decode(tmp_path / "none.png")
    with pytest.raises(ValueError, match="a folder, not a picture"):
        decode(tmp_path)


def test_decompression_bomb_is_refused_without_being_unpacked(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"too large to open safely: .*bomb\.png"):
        decode(tmp_path / "bomb.png")


def test_tensors():
    image = torch.rand(3, 5, 7)
    assert decode(image) is image
    assert decode(image.half()).dtype == torch.float32
    assert decode(image.double()).dtype == torch.float64
    assert decode((image * 255).byte()).dtype == torch.uint8


@pytest.mark.parametrize(
    "image, error, message",
    [
        (torch.full((3, 4, 4), float("nan")), ValueError, "NaN or infinite"),
        (torch.full((3, 4, 4), float("inf")), ValueError, "NaN or infinite"),
        (torch.full((3, 4, 4), -0.1), ValueError, r"in \[0, 1\], got -0.1 to -0.1: clamp"),
        (torch.full((3, 4, 4), 200.0), ValueError, "divide by 255"),
        (torch.zeros(4, 4, 3), ValueError, r"must be \[3, H, W\], got \[4, 4, 3\]"),
        (torch.zeros(1, 3, 4, 4), ValueError, r"must be \[3, H, W\]"),
        (torch.zeros(3, 0, 4), ValueError, "without pixels"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "uint8 or floating point"),
        (None, TypeError, "not NoneType"),
        (np.zeros((4, 4, 3)), TypeError, "not numpy.ndarray"),
        (Image.new("RGB", (0, 5)), ValueError, "without pixels"),
    ],
)
def test_bad_values_are_named(image, error, message):
    with pytest.raises(error, match=message):
        decode(image)
