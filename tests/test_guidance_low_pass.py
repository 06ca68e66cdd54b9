"""The low-pass averages neighbours of the picture, however a pipeline packs its latents."""

import pytest
import tiny_pipes
import torch

from tastemaker.guidance.decode import Decoder
from tastemaker.guidance.guide import Guide, low_passed, rearranged, rms
from tastemaker.guidance.pipelines import reward_guidance
from tastemaker.guidance.rewards import along, unit, weighted

H, W = 8, 12  # of the latents; not square, so that rows taken for columns are found
PACKED = {"Flux": (2, H * W // 4, 64), "Qwen-Image": (2, H * W // 4, 64)}
SHAPES = PACKED | {"SD 1.5": (2, 4, H, W), "Wan": (2, 16, 3, H, W)}


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def sampled(pipe, name):
    generator = torch.Generator().manual_seed(0)
    return pipe(**{**tiny_pipes.call(name), "generator": generator, "output_type": "pt"}).images


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("inference", [False, True])
def test_the_push_is_the_smoothed_gradient_at_its_size(name, inference):
    pipe = tiny_pipes.make(name)
    decoder = Decoder(pipe)
    if name in PACKED:
        decoder.size = H * pipe.vae_scale_factor, W * pipe.vae_scale_factor
    with torch.inference_mode(inference):
        g = unit(torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0)))
        plain, smooth = (
            Guide(weighted(red), decoder, low_pass=side).push(g, 0.8) for side in (0, 3)
        )
        wanted = low_passed(decoder.unpack(plain), 3)
        wanted *= along(rms(plain) / rms(wanted), wanted)
    torch.testing.assert_close(decoder.unpack(smooth), wanted)
    assert not smooth.requires_grad


@pytest.mark.parametrize("name", PACKED)
def test_packed_latents_are_guided_through_it(name):
    pipe = tiny_pipes.make(name)
    plain = sampled(pipe, name)
    with reward_guidance(pipe, red, window=(0, 1), low_pass=3) as record:
        guided = sampled(pipe, name)
    assert all((row.push > 0).all() for row in record.rows)
    assert red(guided) > red(plain)


def test_a_callable_that_gets_packed_latents_is_told_why_it_cannot():
    guide = Guide(weighted(red), lambda x0: x0, low_pass=3)
    with pytest.raises(ValueError, match="low_pass needs latents"):
        guide.push(torch.randn(2, 24, 64), 0.8)


def test_what_is_rearranged_comes_back_in_its_place():
    x = torch.randn(3, 4, 5)
    assert torch.equal(rearranged(lambda z: z.mT.flip(0), lambda z: 2 * z, x), 2 * x)
