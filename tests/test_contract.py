"""What holds for every scorer, checked on one without a network; and the card."""

import pytest
import torch
from stub import Brightness

import tastemaker


def test_batch_kept_at_one_and_zero():
    scorer = Brightness()
    assert scorer(torch.rand(1, 3, 4, 4)).shape == (1,)
    empty = scorer(torch.rand(0, 3, 4, 4))
    assert empty.shape == (0,) and empty.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_point_comes_back_as_float32(dtype):
    assert Brightness()(torch.rand(2, 3, 4, 4).to(dtype)).dtype == torch.float32


def test_gradient_reaches_the_pixels_and_not_the_weights():
    scorer, images = Brightness(size=(3, 3)), torch.rand(2, 3, 8, 8, requires_grad=True)
    scorer(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in scorer.parameters())


@pytest.mark.parametrize(
    "images, error, message",
    [
        (torch.zeros(3, 4, 4), ValueError, r"images\[None\]"),
        (torch.zeros(2, 4, 4, 3), ValueError, r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 4, 5, 5), ValueError, r"must be \[B, 3, H, W\], got \[2, 4, 5, 5\]"),
        (torch.zeros(2, 3, 0, 5), ValueError, "no pixels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), TypeError, "images / 255"),
        ([torch.zeros(3, 4, 4)], TypeError, "got list"),
        (torch.zeros(2, 3, 4, 4, device="meta"), ValueError, "on meta, the scorer on cpu"),
    ],
)
def test_bad_batches_are_named_in_one_line(images, error, message):
    with pytest.raises(error, match=message) as caught:
        Brightness()(images)
    assert "\n" not in str(caught.value)


def test_video_is_the_mean_of_its_frames():
    frames = torch.rand(2, 5, 3, 4, 4)
    expected = frames.mean((1, 2, 3, 4))
    torch.testing.assert_close(Brightness().score_video(frames), expected)
    with pytest.raises(ValueError, match=r"\[B, T, 3, H, W\]"):
        Brightness().score_video(frames[0])


def test_8_bit_frames_are_prepared_as_files_are():
    scorer = Brightness(size=(3, 3))
    frames = torch.randint(0, 256, (2, 5, 3, 7, 8), dtype=torch.uint8)
    expected = scorer.score(list(frames.flatten(0, 1))).reshape(2, 5).mean(1)
    assert torch.equal(scorer.score_video(frames), expected)
    assert scorer.score_video(frames[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_bad_frames_are_named_in_one_line(dtype):
    for shape in [(1, 0, 3, 4, 4), (1, 2, 4, 4, 4), (1, 2, 3, 0, 4)]:
        with pytest.raises(ValueError, match=r"frames must be \[B, T, 3, H, W\], got"):
            Brightness().score_video(torch.zeros(shape, dtype=dtype))
    with pytest.raises(ValueError, match="frames are on meta, the scorer on cpu"):
        Brightness().score_video(torch.zeros(1, 2, 3, 4, 4, dtype=dtype, device="meta"))


def test_a_scorer_stays_in_evaluation_mode():
    assert not Brightness().train().training


def test_card_is_read_off_the_weights():
    card = Brightness().card
    assert card.parameters == 1 and card.memory == 4
    assert card.fingerprint["weights"] == "stub" and card.fingerprint["dtype"] == "float32"
    assert len(card.fingerprint_id) == 16


def test_whatever_changes_a_score_changes_the_fingerprint():
    scorer = Brightness()
    before = scorer.card.fingerprint_id
    assert Brightness().card.fingerprint_id == before
    assert scorer.half().card.fingerprint_id != before


def test_public_names():
    assert set(tastemaker.__all__) <= set(dir(tastemaker))
    for name in tastemaker.__all__:
        assert getattr(tastemaker, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tastemaker.nothing  # noqa: B018
