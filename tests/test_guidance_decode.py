"""What the decoder shows is what the pipeline would return, and the gradient of it is right."""

import pytest
import tiny_pipes
import torch
from torch.autograd import gradcheck

from tastemaker.guidance.decode import FAMILIES, Decoder, checkpointed, fit_rgb, spread

NAMES = list(tiny_pipes.BUILDERS)
PACKED = ("Flux", "Qwen-Image")


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny_pipes.make(name) for name in NAMES}


def final(pipe, name, prompts=2, size=None, **options):
    """A decoder that watched a run, and the latents where it ended."""
    decoder = Decoder(pipe, **options)
    with decoder.watching():
        return decoder, tiny_pipes.output(pipe, tiny_pipes.call(name, prompts, size))


def gradient(decoder, latents):
    z = latents.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(decoder(z).square().sum(), z)[0]


def test_every_family_is_tested(pipes):
    assert {type(pipe).__name__ for pipe in pipes.values()} == set(FAMILIES)


@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_pipeline_returns(name, size, pipes):
    decoder, latents = final(pipes[name], name, size=size, frames=None)
    pictures = tiny_pipes.output(pipes[name], tiny_pipes.call(name, 2, size), "pt")
    assert decoder.size == size and pictures.shape[-2:] == size
    assert 0.1 < pictures.std() < 0.4  # not grey, not saturated: an error would show
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_there_and_the_weights_get_none(name, pipes):
    decoder, latents = final(pipes[name], name, size=(32, 64))
    vae = pipes[name].vae
    learning = [p.requires_grad for p in vae.parameters()]
    assert all(learning)
    z = latents.clone().requires_grad_()
    decoder(z).square().sum().backward()  # not only autograd.grad, which never fills weights
    assert z.grad.isfinite().all() and z.grad.dtype == torch.float32
    assert (z.grad.flatten(1).norm(dim=1) > 1e-3).all()
    assert all(p.grad is None for p in vae.parameters())
    assert [p.requires_grad for p in vae.parameters()] == learning


def kept(decoder, latents):
    """Numbers that the forward keeps for its backward."""
    found = {}

    def pack(x):
        found[x.data_ptr()] = x.numel()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        pixels = decoder(latents.clone().requires_grad_())
    assert pixels.requires_grad  # and alive, so that no memory is counted twice
    return sum(found.values())


@pytest.mark.parametrize("how", ["vae", "AutoencoderTiny"])
@pytest.mark.parametrize("name", NAMES)
def test_with_activations_computed_again_the_gradient_is_the_same(name, how):
    pipe = tiny_pipes.make(name)
    module = pipe.vae if how == "vae" else tiny(pipe)
    decoder, latents = final(pipe, name, how=module if how != "vae" else how)
    slope, before = gradient(decoder, latents), kept(decoder, latents)
    with checkpointed(module):
        assert torch.equal(gradient(decoder, latents), slope)
        after = kept(decoder, latents)
    if module._supports_gradient_checkpointing:
        assert after < before / 2
    assert gradient(decoder, latents).equal(slope) and kept(decoder, latents) == before
    assert all(p.grad is None for p in module.parameters())


def test_frozen_weights_and_free_ones_give_the_same_gradient():
    pipe = tiny_pipes.make("SD3")
    decoder, latents = final(pipe, "SD3")
    free = gradient(decoder, latents)
    pipe.vae.requires_grad_(False)
    assert torch.equal(gradient(decoder, latents), free)
    assert not any(p.requires_grad for p in pipe.vae.parameters())


@pytest.mark.parametrize("how", ["vae", "linear", "AutoencoderTiny"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_slope(name, how):
    """Of a reward of the decoded picture, along a few directions."""
    pipe = tiny_pipes.make(name)
    decoder, latents = final(pipe, name, how=tiny(pipe) if how == "AutoencoderTiny" else how)
    for module in (pipe.vae, decoder.how):
        if isinstance(module, torch.nn.Module):
            module.double()
    x0 = 0.3 * latents.double()  # away from where pixels are clamped
    generator = torch.Generator().manual_seed(1)
    toward = torch.randn(3, *x0.shape, generator=generator, dtype=torch.float64)

    def along(amounts):  # [3] -> the reward of each picture or frame
        pixels = decoder(x0 + torch.tensordot(amounts, toward, 1))
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        return (pixels[:, 0].square() - pixels[:, 1:].sin().mean(1)).mean((1, 2))

    # These two upsample in float32, whatever their weights are: finer differences would be rounding.
    float32 = how == "vae" and name in ("Qwen-Image", "Wan")
    steps = dict(eps=3e-3, atol=2e-5, rtol=0.01) if float32 else dict(eps=1e-6)
    assert gradcheck(along, torch.zeros(3, dtype=torch.float64, requires_grad=True), **steps)


def tiny(pipe):
    from diffusers import AutoencoderTiny

    config = pipe.vae.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=config.get("latent_channels") or config.z_dim,
        )


def test_it_works_under_inference_mode_the_way_guidance_calls_it(pipes):
    from tastemaker.guidance.rewards import ascent

    decoder, latents = final(pipes["SDXL"], "SDXL", how="linear")
    with torch.inference_mode():
        ascent([(lambda x: x.mean((1, 2, 3)), 1.0)], latents.clone(), decoder)
        _, direction, _ = ascent([(lambda x: x.mean((1, 2, 3)), 1.0)], latents.clone(), decoder)
    assert direction.abs().sum() > 0


# --- precision and place ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["SD3", "Qwen-Image"])
def test_a_half_precision_vae_decodes_float32_latents(name, dtype):
    pipe = tiny_pipes.make(name)
    decoder, latents = final(pipe, name)
    with torch.no_grad():
        exact = decoder(latents)
        pipe.vae.to(dtype)
        near = decoder(latents)
    assert near.dtype == torch.float32 and pipe.vae.dtype == dtype
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05)
    assert gradient(decoder, latents).isfinite().all()


def test_a_float16_vae_that_overflows_computes_in_float32_as_the_pipeline_does():
    pipe = tiny_pipes.make("SDXL")
    pipe.vae.half()
    assert pipe.vae.config.force_upcast
    decoder, latents = final(pipe, "SDXL")
    pictures = tiny_pipes.output(pipe, tiny_pipes.call("SDXL", 2), "pt")
    before = {name: p for name, p in pipe.vae.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), pictures, rtol=0, atol=1e-5)
    pipe.vae.decoder.conv_out.weight.data.mul_(
        1
    )  # a backward pass must not need the copies' origin
    slope = gradient(decoder, latents)
    with checkpointed(pipe.vae):  # nothing is computed again with weights of another type
        assert torch.equal(gradient(decoder, latents), slope)
        assert pipe.vae.is_gradient_checkpointing
    pipe.vae.float()
    torch.testing.assert_close(slope, gradient(decoder, latents))
    assert all(p is before[name] and p.grad is None for name, p in pipe.vae.named_parameters())


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_an_offloaded_vae_decodes_and_is_put_back(way):
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny_pipes.make("SD3")
    decoder, latents = final(pipe, "SD3")
    with torch.no_grad():
        pictures = decoder(latents)
    slope = gradient(decoder, latents)
    if way == "model":
        accelerate.cpu_offload_with_hook(pipe.vae, torch.device("cpu"))
    else:
        accelerate.cpu_offload(pipe.vae, torch.device("cpu"))
    where = [p.device for p in pipe.vae.parameters()]
    assert (torch.device("meta") in where) == (way == "sequential")
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), pictures)
    torch.testing.assert_close(gradient(decoder, latents), slope)
    assert [p.device for p in pipe.vae.parameters()] == where
    assert all(p.grad is None for p in pipe.vae.parameters())


def test_sdxl_with_statistics():
    pipe = tiny_pipes.make("SDXL")
    pipe.vae.register_to_config(
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 3.0]
    )
    decoder, latents = final(pipe, "SDXL")
    pictures = tiny_pipes.output(pipe, tiny_pipes.call("SDXL", 2), "pt")
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), pictures, rtol=0, atol=1e-5)


# --- video -----------------------------------------------------------------------------------------


def test_of_a_video_a_few_frames_spread_over_it(pipes):
    decoder, latents = final(pipes["Wan"], "Wan", frames=2)
    clip = tiny_pipes.output(pipes["Wan"], tiny_pipes.call("Wan", 2), "pt")
    assert latents.shape[2] == 3 and clip.shape == (2, 9, 3, 32, 32)
    with torch.no_grad():
        pictures = decoder(latents)
        last = decoder(latents[:, :, 2:])
    assert pictures.shape == (2, 2, 3, 32, 32)
    torch.testing.assert_close(pictures[:, 0], clip[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(pictures[:, 1], last[:, 0], rtol=0, atol=1e-5)
    slope = gradient(decoder, latents).abs().sum((0, 1, 3, 4))
    assert slope[0] > 0 and slope[1] == 0 and slope[2] > 0


@pytest.mark.parametrize(
    ("count", "frames", "picks"),
    [(1, 3, [0]), (2, 3, [0, 1]), (5, 3, [0, 2, 4]), (21, 3, [0, 10, 20]), (4, 1, [0])],
)
def test_spread(count, frames, picks):
    z = torch.arange(count).view(1, 1, count, 1, 1).expand(2, 1, count, 1, 1) + 0.5
    picked = spread(z, frames)
    assert picked.shape == (2 * len(picks), 1, 1, 1, 1)
    assert picked.flatten().tolist() == [pick + 0.5 for pick in picks] * 2


# --- the other ways to decode ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_autoencoder(name, pipes):
    """It takes the latents that the denoiser works in, whatever the scale of the pipeline's VAE."""
    small = tiny(pipes[name])
    decoder, latents = final(pipes[name], name, how=small, size=(32, 64))
    with torch.no_grad():
        pictures = decoder(latents)
    assert pictures.shape[-2] * 2 == pictures.shape[-1]
    assert pictures.ndim == (5 if name == "Wan" else 4)
    assert gradient(decoder, latents).norm() > 0
    assert all(p.grad is None for p in small.parameters())
    if name in ("SD 1.5", "SD3", "Flux"):  # the pipeline itself, with the tiny one as its VAE
        own, pipes[name].vae = pipes[name].vae, small
        try:
            theirs = tiny_pipes.output(pipes[name], tiny_pipes.call(name, 2, (32, 64)), "pt")
        finally:
            pipes[name].vae = own
        torch.testing.assert_close(pictures, theirs, rtol=0, atol=1e-5)


def test_a_tiny_autoencoder_for_another_family_is_refused(pipes):
    from diffusers import AutoencoderTiny

    decoder, latents = final(pipes["SD3"], "SD3", how=AutoencoderTiny())
    with pytest.raises(ValueError, match="is for 4 channels, not 16"):
        decoder(latents)


@pytest.mark.parametrize("name", NAMES)
def test_linear(name, pipes):
    decoder, latents = final(pipes[name], name, how="linear", size=(32, 64))
    with torch.no_grad():
        pictures = decoder(latents)
        full = Decoder(pipes[name])
        full.size = decoder.size
        exact = full(latents)
    assert pictures.ndim == exact.ndim and pictures.shape[-3] == 3
    assert pictures.shape[-2] * 2 == pictures.shape[-1] < exact.shape[-1]
    assert abs(pictures.mean() - exact.mean()) < 0.02
    again = decoder(latents + 0.1)  # fitted once: what comes later does not move the matrix
    assert torch.equal(decoder(latents), pictures) and not torch.equal(again, pictures)
    assert gradient(decoder, latents).norm() > 0


def test_the_fit_finds_a_matrix_that_there_is():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 8, 8, generator=generator)
    rgb = torch.randn(5, 3, generator=generator)
    small = torch.einsum("nchw,cd->ndhw", z, rgb[:4]) + rgb[4].view(3, 1, 1)
    pixels = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(fit_rgb(z, pixels).float(), rgb, rtol=1e-3, atol=1e-3)


def test_a_callable_gets_x0_as_it_is_from_any_pipeline():
    x0 = torch.zeros(1, 7)
    decoder = Decoder(object(), lambda x: x + 1)
    with decoder.watching():
        assert torch.equal(decoder(x0), x0 + 1)


# --- refusals, and what is left behind -------------------------------------------------------------


def test_unknown_pipelines_and_ways_are_refused_by_name(pipes):
    class OtherPipeline:
        pass

    for how in ("vae", "linear"):
        with pytest.raises(NotImplementedError, match="OtherPipeline are not known.*callable"):
            Decoder(OtherPipeline(), how)
    with pytest.raises(ValueError, match="'taesd'"):
        Decoder(pipes["SD3"], "taesd")
    with pytest.raises(ValueError, match="at least 1"):
        Decoder(pipes["Wan"], frames=0)


@pytest.mark.parametrize("name", PACKED)
def test_packed_latents_need_the_size_of_the_run(name, pipes):
    _, latents = final(pipes[name], name, size=(32, 64))
    decoder = Decoder(pipes[name])
    with pytest.raises(RuntimeError, match="watching"):
        decoder(latents)
    decoder.size = (32, 64)
    assert decoder(latents).shape == (2, 3, 32, 64)


def test_watching_leaves_nothing_behind_also_after_an_error(pipes):
    pipe = pipes["Flux"]
    tiny_pipes.output(pipe, tiny_pipes.call("Flux"))  # after which it has the attributes of a run
    before = dict(vars(pipe))
    decoder = Decoder(pipe)
    with pytest.raises(KeyError), decoder.watching():
        assert "prepare_latents" in vars(pipe)
        raise KeyError
    assert vars(pipe) == before
    with decoder.watching(), Decoder(pipe).watching():
        tiny_pipes.output(pipe, tiny_pipes.call("Flux", 1, (64, 32)))
    assert decoder.size == (64, 32) and vars(pipe) == before
