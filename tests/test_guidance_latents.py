"""Noise ratios, linear previews, and frames: what ComfyUI's latents need, without ComfyUI."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.guidance.latents import decoded, linear_pixels, noise_ratio
from tastemaker.guidance.record import Record, Row, summary

SIGMAS = st.floats(0, 200)


@given(SIGMAS)
def test_noise_ratio_of_added_noise_is_that_of_the_scaled_sample(sigma):
    """x / sqrt(1 + sigma^2) = sqrt(1 - r^2) x0 + r n."""
    r = noise_ratio(sigma, flow=False)
    assert 0 <= r <= 1
    assert (1 - r**2) ** 0.5 == pytest.approx((1 + sigma**2) ** -0.5, abs=1e-6)


@given(st.floats(0, 1))
def test_noise_ratio_of_a_flow_is_that_of_sigma_over_its_signal(sigma):
    r = noise_ratio(sigma, flow=True)
    assert r * (1 - sigma) == pytest.approx((1 - r**2) ** 0.5 * sigma, abs=1e-6)


def test_noise_ratio_ends_and_knows_the_datas_deviation():
    assert [noise_ratio(s, flow=True) for s in (0, 0.5, 1)] == [0, pytest.approx(0.5**0.5), 1]
    assert noise_ratio(0, flow=False) == 0
    assert noise_ratio(1.5, False, 0.5) == pytest.approx(noise_ratio(3, False))


def test_linear_pixels_are_a_matrix_product_from_minus_one_to_one():
    latents = torch.tensor([[[[2.0]], [[0.5]]]])  # [1, 2, 1, 1]
    pixels = linear_pixels(latents, [[0.1, 0.2, 1.0], [0.4, 0.0, 1.0]], [0.0, -0.4, 0.0])
    assert pixels.flatten().tolist() == pytest.approx([0.7, 0.5, 1.0])
    assert linear_pixels(latents, [[0, 0, 0], [1, 0, 0]]).flatten().tolist() == [0.75, 0.5, 0.5]


def test_linear_pixels_refuse_other_latents():
    with pytest.raises(ValueError, match="16 channels.*for 4: connect a VAE"):
        linear_pixels(torch.zeros(1, 16, 2, 2), [[0, 0, 0]] * 4)


def test_videos_are_decoded_by_a_few_frames_and_clips_of_one_are_pictures():
    def decode(z):
        assert z.ndim == 4
        return z[:, :3] * 2

    z = torch.rand(2, 4, 5, 3, 3)
    assert torch.equal(decoded(z[:, :, 0], decode), z[:, :3, 0] * 2)
    assert torch.equal(decoded(z[:, :, :1], decode), z[:, :3, 0] * 2)
    video = decoded(z, decode)
    assert torch.equal(video, z[:, :3, [0, 2, 4]].movedim(2, 1) * 2)


def test_a_summary_tells_what_was_guided_and_what_went_wrong():
    assert summary(Record()) == summary(Record([Row(0, 1.0, 1.0)])) == "Nothing was guided."
    rows = [
        Row(0, 1, 1, torch.tensor([1.0, 3.0])),
        Row(1, 1, 1, torch.tensor([4.0, 4.0])),
        Row(2, 0, 0),
    ]
    said = summary(Record(rows))
    assert said == "Guided 2 of 3 steps; the score of the forming image went from 2 to 4."
    rows[1].gain, rows[1].held_out_gain = 1.5, -0.25
    said = summary(Record(rows, gap=True, stopped=True))
    assert "added +1.5, and -0.25 to the held-out score" in said
    assert "reward hacking" in said and said.endswith("stopped for it.")
