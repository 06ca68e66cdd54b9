"""The four corruptions: same kind and size, repeatable, and the stronger the worse."""

import io
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tastemaker.scorers import corruptions
from tastemaker.scorers.corruptions import CORRUPTIONS, NotCompressible, third_size_quality

KINDS = list(CORRUPTIONS)


def picture(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    """Waves of all lengths, edges and a little grain: compressible, and with detail to lose."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]  # [H, W, 1]
    pixels = 128 + 20.0 * ((x // 16 + y // 16) % 2) + rng.normal(0, 2, (height, width, 3))
    for frequency in (0.1, 0.3, 0.6, 1.2, 1.8, 2.4):  # radians a pixel
        angle, phase = rng.uniform(0, 2 * np.pi, (2, 3))
        along = np.cos(angle) * x + np.sin(angle) * y
        pixels += 15 * np.sin(frequency * along + phase)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def difference(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of two pictures, of 255."""
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def file_size(image: Image.Image, quality: int) -> int:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def test_there_are_four():
    assert KINDS == ["jpeg", "low_resolution", "noise", "blur"]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(40, 130),
    height=st.integers(40, 130),
    seed=st.integers(0, 2**32),
)
def test_same_size_repeatable_and_the_source_untouched(kind, width, height, seed):
    source = picture(width, height)
    before = source.tobytes()
    try:
        corrupted = CORRUPTIONS[kind](source, Random(seed))
    except NotCompressible:
        assert kind == "jpeg"
        return
    assert corrupted.size == source.size and corrupted.mode == "RGB"
    assert corrupted.tobytes() == CORRUPTIONS[kind](source, Random(seed)).tobytes()
    assert corrupted.tobytes() != before == source.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_gives_the_array_of_the_same_picture(kind):
    source = picture()
    corrupted = CORRUPTIONS[kind](np.asarray(source), Random(3))
    assert isinstance(corrupted, np.ndarray) and corrupted.dtype == np.uint8
    np.testing.assert_array_equal(corrupted, np.asarray(CORRUPTIONS[kind](source, Random(3))))
    corrupted[:] = 0  # its own memory, writable


@pytest.mark.parametrize("kind", ["low_resolution", "noise", "blur"])
def test_another_seed_draws_another_strength(kind):
    source = picture()
    results = {CORRUPTIONS[kind](source, Random(seed)).tobytes() for seed in range(8)}
    assert len(results) == 8


@pytest.mark.parametrize(
    ("kind", "name", "strengths"),
    [
        ("jpeg", "quality", (85, 60, 30, 10)),
        ("low_resolution", "scale", (0.9, 0.75, 0.6, 0.5)),
        ("noise", "sigma", (4, 8, 16, 25)),
        ("blur", "radius", (0.7, 1.2, 2, 3)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_stronger_is_further_from_the_original(kind, name, strengths, seed):
    source = picture(seed=seed)
    extra = {"upscale": Image.BICUBIC} if kind == "low_resolution" else {}
    distances = [
        difference(source, CORRUPTIONS[kind](source, Random(seed), **{name: s}, **extra))
        for s in strengths
    ]
    assert distances == sorted(distances) and distances[-1] > 1.2 * distances[0] > 0


@pytest.mark.parametrize("seed", range(4))
def test_third_size_quality_is_the_first_that_is_small_enough(seed):
    source = picture(256, 192, seed)
    quality = third_size_quality(source)
    limit = file_size(source, 90) / 3
    assert file_size(source, quality) <= limit < file_size(source, quality + 5)
    assert quality % 5 == 0
    by_default = corruptions.jpeg(source, Random(0))
    assert by_default.tobytes() == corruptions.jpeg(source, Random(1), quality=quality).tobytes()


def test_a_picture_that_no_quality_makes_small_says_so():
    with pytest.raises(NotCompressible, match="32x16"):
        corruptions.jpeg(Image.new("RGB", (32, 16), "red"), Random(0))


@pytest.mark.parametrize("sigma", [4.0, 10.0, 25.0])
def test_noise_has_the_stated_sigma_and_no_bias(sigma):
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    field = np.asarray(corruptions.noise(grey, Random(0), sigma=sigma), float) - 128
    assert field.std() == pytest.approx(sigma, rel=0.02)
    assert abs(field.mean()) < 4 * sigma / np.sqrt(field.size)
    channels = np.corrcoef(field.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.02


def test_the_same_seed_scales_one_noise_field():
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    weak, strong = (
        np.asarray(corruptions.noise(grey, Random(5), sigma=s), float) - 128 for s in (5, 20)
    )
    assert np.abs(4 * weak - strong).max() <= 2.5  # rounding: 4 * 0.5 + 0.5


@pytest.mark.parametrize("radius", [0.7, 1.5, 3.0])
def test_blur_has_the_stated_radius(radius):
    dot = np.zeros((65, 65, 3), np.uint8)
    dot[30:35, 30:35] = 255
    spread = corruptions.blur(dot, Random(0), radius=radius)[..., 0].astype(float)
    offsets = np.arange(65) - 32
    variance = (spread.sum(0) @ offsets**2) / spread.sum()
    assert variance - 2 == pytest.approx(radius**2, rel=0.15)  # 2: the 5 px square's own


def test_low_resolution_loses_what_the_smaller_picture_cannot_hold():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    lost = corruptions.low_resolution(stripes, Random(0), scale=0.5, upscale=Image.BICUBIC)
    assert lost[8:-8, 8:-8].std() < 2  # from 127.5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_an_rgb_picture_is_refused(kind):
    with pytest.raises(ValueError, match="must be RGB, got L"):
        CORRUPTIONS[kind](Image.new("L", (64, 64)), Random(0))
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float32 \[64, 64, 3\]"):
        CORRUPTIONS[kind](np.zeros((64, 64, 3), np.float32), Random(0))
    with pytest.raises(ValueError, match=r"got uint8 \[3, 64, 64\]"):
        CORRUPTIONS[kind](np.zeros((3, 64, 64), np.uint8), Random(0))
