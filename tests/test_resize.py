"""8-bit pictures are resized bit-equal to the installed Pillow; floating point, differentiably."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tastemaker.scorers import resize as module
from tastemaker.scorers.resize import _on_device, _whole, height_first, resize


def noise(height, width, batch=1, seed=0):
    shape = (batch, 3, height, width)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def pillow(images, size):
    """[B, 3, H, W] uint8 by Pillow, one by one."""
    resized = [
        np.asarray(
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.BICUBIC)
        )
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def check(images, size):
    """Both exact paths; the one for GPUs is plain torch, so it runs here too."""
    official = pillow(images, size)
    assert torch.equal(_on_device(images, size, _whole(size)), official)
    assert torch.equal(resize(images, size), official)


# (height, width) to (height, width). The third and fourth are those whose passes Pillow 13 reordered.
SHAPES = [
    ((1024, 1024), (512, 512)),
    ((832, 1216), (512, 512)),
    ((1216, 832), (512, 512)),
    ((1344, 768), (512, 512)),
    ((997, 1501), (336, 505)),
    ((1, 1), (512, 512)),
    ((1, 1000), (336, 336)),
    ((1000, 1), (336, 336)),
    ((300, 400), (512, 512)),
    ((512, 700), (512, 512)),
    ((700, 512), (512, 512)),
    ((3, 5000), (7, 48)),
    ((5000, 3), (48, 7)),
    ((2, 2), (1, 1)),
    ((40, 5000), (40, 39)),
]


@pytest.mark.parametrize(("source", "size"), SHAPES)
def test_bit_equal_to_pillow(source, size):
    check(noise(*source), size)


edges = st.one_of(st.integers(1, 12), st.integers(1, 300))
sizes = st.tuples(edges, edges)


@settings(max_examples=150, deadline=None)
@given(source=sizes, size=sizes, batch=st.integers(1, 3), seed=st.integers(0, 9))
def test_bit_equal_to_pillow_for_any_shape(source, size, batch, seed):
    check(noise(*source, batch, seed), size)


def test_saturated_pictures_overshoot_and_are_clipped_as_in_pillow():
    check((noise(90, 70) > 127).to(torch.uint8) * 255, (33, 64))
    check((noise(9, 7) > 127).to(torch.uint8) * 255, (64, 33))
    check(torch.full((1, 3, 50, 50), 255, dtype=torch.uint8), (13, 77))


@settings(max_examples=60, deadline=None)
@given(source=sizes, size=sizes, data=st.data())
def test_a_window_of_the_result_is_that_part_of_it(source, size, data):
    images, window = noise(*source), []
    for m in size:
        start = data.draw(st.integers(0, m - 1))
        window.append((start, data.draw(st.integers(start + 1, m))))
    (top, bottom), (left, right) = window = tuple(window)
    part = pillow(images, size)[..., top:bottom, left:right]
    assert torch.equal(_on_device(images, size, window), part)
    assert torch.equal(resize(images, size, window), part)
    floating = images.float() / 255
    whole = resize(floating, size)
    assert torch.equal(resize(floating, size, window), whole[..., top:bottom, left:right])


def test_a_sliver_does_not_fill_the_memory():
    """To 336 pixels on the short side: 11 gigapixels, of which the central square is wanted."""
    images = noise(1, 100_000)
    part = resize(images, (336, 33_600_000), ((0, 336), (16_799_832, 16_800_168)))
    nearby = pillow(images[..., 49_990:50_010], (336, 20 * 336))  # the same scale around the middle
    expected = nearby[..., 3_192 : 3_192 + 336]
    torch.testing.assert_close(part.float(), expected.float(), atol=1, rtol=0)


def test_beyond_the_exact_range_of_float32_pillow_itself_is_used(monkeypatch):
    called = []
    original = module._by_pillow
    monkeypatch.setattr(module, "_by_pillow", lambda *a: called.append(a) or original(*a))
    for reduction, used in ((126, 0), (140, 1)):
        images = noise(1, reduction * 32)
        assert torch.equal(_on_device(images, (1, 32), _whole((1, 32))), pillow(images, (1, 32)))
        assert len(called) == used


def test_sums_stay_exact_at_the_largest_reduction():
    """The bound in `MAX_TAPS`: no sum of digits times pixels reaches 2^24."""
    _, digits = module._blocks(126 * 32, 32, 0, 32, torch.device("cpu"))
    assert digits.abs().sum(1).max() * 255 < 2**24
    assert digits.abs().max() <= 128


def test_batches_over_the_chunk_are_split_and_joined_in_order(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 60 * 50 * 2)
    check(noise(60, 50, batch=5), (30, 20))


def test_channels_last_and_other_strides():
    images = noise(60, 50, batch=2)
    check(images.contiguous(memory_format=torch.channels_last), (20, 30))
    check(images[..., ::2], (20, 30))


def test_pillow_orders_its_passes_by_version():
    wide, tall, sliver = ((832, 1216), (1216, 832), (5000, 40))
    for order, expected in (
        ((10, 0), [False, False, False]),
        ((12, 2), [False, False, True]),
        ((13, 0), [False, True, True]),
    ):
        assert [height_first(s, (512, 512), order) for s in (wide, tall, sliver)] == expected


def test_the_order_of_passes_shows():
    """Otherwise the tests above would pass with either order."""
    images = noise(1216, 832)
    first = module._pass(images, 512, 0, 512)
    by_width = module._pass(first.transpose(-1, -2), 512, 0, 512).transpose(-1, -2)
    first = module._pass(images.transpose(-1, -2), 512, 0, 512).transpose(-1, -2)
    by_height = module._pass(first, 512, 0, 512)
    assert not torch.equal(by_width, by_height)


def test_the_same_size_is_the_same_tensor():
    for images in (noise(20, 30), noise(20, 30).float() / 255):
        assert resize(images, (20, 30)) is images


def test_floating_point_is_close_to_pillow_and_within_range():
    smooth = torch.nn.functional.interpolate(noise(8, 8).float(), (200, 160), mode="bilinear")
    images = smooth.round().to(torch.uint8)
    resized = resize(images.float() / 255, (90, 130))
    assert (resized * 255 - pillow(images, (90, 130))).abs().max() < 1.1
    extremes = resize((noise(40, 40) > 127).float(), (23, 71))
    assert extremes.min() >= 0 and extremes.max() <= 1


@pytest.mark.parametrize("size", [(9, 17), (40, 31)])
def test_floating_point_gradient(size):
    images = (noise(24, 20).double() / 255 * 0.5 + 0.25).requires_grad_()
    weights = torch.rand(1, 3, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (resize(x, size) * weights).sum(), images)
