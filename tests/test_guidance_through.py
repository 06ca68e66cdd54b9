"""Guidance by the gradient through the denoiser, on pipelines of the real classes."""

import copy

import diffusers
import numpy as np
import pytest
import tiny_pipes
import torch
from stub import Brightness

from tastemaker.guidance.decode import Decoder
from tastemaker.guidance.guide import Guide
from tastemaker.guidance.initial import initial_noise
from tastemaker.guidance.pipelines import RewardCallback, reward_guidance
from tastemaker.guidance.prune import denoisers
from tastemaker.guidance.tap import tap
from tastemaker.guidance.through import tap_through

PIPES = ("SD 1.5", "SDXL", "SD3", "Flux", "Qwen-Image", "Z-Image", "Wan")
SD = tiny_pipes.SD_SCHEDULE


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def run(pipe, name, count=2, **more):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    arguments = {**tiny_pipes.call(name, count), "generator": generators, "output_type": "pt"}
    output = pipe(**{**arguments, **more})
    return torch.as_tensor(output.frames if hasattr(output, "frames") else output.images)


def reward(pixels):
    return red(pixels.reshape(-1, *pixels.shape[-3:])).mean().item()


def guidance(pipe, scorer=red, **options):
    options = {"through_model": True, "window": (0, 1), **options}
    return reward_guidance(pipe, scorer, **options)


def state(pipe):
    modules = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    learning = [p.requires_grad for module in modules for p in module.parameters()]
    checkpointing = [
        getattr(part, "gradient_checkpointing", None)
        for module in modules
        for part in module.modules()
    ]
    attributes = set(vars(pipe)), set(vars(pipe.scheduler))
    return type(pipe), type(pipe.scheduler), attributes, learning, checkpointing


@pytest.mark.parametrize("name", PIPES)
def test_it_raises_the_reward_and_leaves_no_trace(name):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name)
    before = state(pipe)
    with guidance(pipe, held_out=Brightness()) as record:
        guided = run(pipe, name)
    assert reward(guided) > reward(plain) and not guided.requires_grad
    assert state(pipe) == before and torch.is_grad_enabled()
    modules = [pipe.vae, *denoisers(pipe)]
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert torch.equal(run(pipe, name), plain)
    assert all(row.push is not None for row in record.rows)
    assert record.denoiser_calls == 4 * 2 * len(record.rows)


class FirstStep(Exception):
    """Ends a run that has shown what it was run for."""


def first_step(pipe, name, latents, ascend=False):
    """The reward of the first x0 that the pipeline predicts from these latents [1, ...]; with `ascend`,
    its directions of ascent of x0 and of the sample too."""
    found = []

    def look(step):
        x0 = step.x0.detach().requires_grad_()
        reward = redness(x0)
        found.append(reward.item())
        if ascend:
            (slope,) = torch.autograd.grad(reward, x0)
            found.extend([slope, step.pullback(slope)])
        raise FirstStep

    decoder = Decoder(pipe)

    def redness(x0):
        pixels = decoder(x0)
        return red(pixels.reshape(-1, *pixels.shape[-3:])).mean()

    guide = Guide([(red, 1.0)], decoder, window=(0, 1))
    kind = tap_through(pipe, guide) if ascend else tap(pipe.scheduler, look)
    with decoder.watching(), kind, pytest.raises(FirstStep):
        if ascend:
            pipe.scheduler._tastemaker_tap.function = look
        run(pipe, name, 1, latents=latents)
    return found if ascend else found[0]


@pytest.mark.parametrize("name", PIPES)
def test_its_step_raises_the_next_x0s_reward_more_than_one_along_the_gradient_of_x0(name):
    """Equal moves of the noisy sample, along either: what the denoiser then makes of it."""
    pipe = tiny_pipes.make(name)
    z = initial_noise(
        pipe, [0], {k: v for k, v in tiny_pipes.call(name).items() if k != "generator"}
    )
    length = 0.02 * z.norm()
    here, of_x0, of_sample = first_step(pipe, name, z, ascend=True)
    gains = [
        first_step(pipe, name, z + length * slope / slope.norm()) - here
        for slope in (of_x0, of_sample)
    ]
    assert 0 < gains[0] < gains[1], gains
    sigma = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    assert gains[1] == pytest.approx(float(sigma * length * of_sample.norm()), rel=0.2)


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("options", [dict(scale=0.0), dict(window=(0.0, 0.0)), dict(target=-9.0)])
def test_no_push_is_the_plain_pipeline_bit_for_bit(name, options):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name)
    with guidance(pipe, **options):
        assert torch.equal(run(pipe, name), plain)


SCHEDULERS = {
    "Heun": diffusers.HeunDiscreteScheduler(**SD),
    "DPM++": diffusers.DPMSolverMultistepScheduler(**SD),
    "Euler ancestral": diffusers.EulerAncestralDiscreteScheduler(**SD),
    "UniPC": diffusers.UniPCMultistepScheduler(**SD),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_other_schedulers(scheduler):
    pipe = tiny_pipes.make("SD 1.5", copy.deepcopy(SCHEDULERS[scheduler]))
    plain = run(pipe, "SD 1.5")
    with guidance(pipe) as record:
        guided = run(pipe, "SD 1.5")
    assert reward(guided) > reward(plain)
    assert all(row.push is not None for row in record.rows)
    with guidance(pipe, scale=0.0):
        assert torch.equal(run(pipe, "SD 1.5"), plain)


def test_a_graph_is_made_only_for_the_steps_that_are_guided():
    pipe, graphs = tiny_pipes.make("SD 1.5"), []
    own = pipe.unet.forward

    def watched(*args, **named):
        output = own(*args, **named)
        graphs.append(output[0].requires_grad)
        return output

    pipe.unet.forward = watched
    with guidance(pipe, window=(0.5, 0.95)) as record:
        run(pipe, "SD 1.5", num_inference_steps=6)
    pushed = [row.push is not None for row in record.rows]
    assert True in pushed and pushed[0] is pushed[-1] is False
    assert graphs == [True, *pushed[1:]]  # at the first, the window is not known yet
    assert record.denoiser_calls == 2 * (6 + 3 * sum(pushed))


@pytest.mark.parametrize("kind", ["pil", "np", "latent"])
def test_every_kind_of_output(kind):
    pipe = tiny_pipes.make("SDXL")
    with guidance(pipe):
        images = pipe(**{**tiny_pipes.call("SDXL"), "output_type": kind}).images
    if kind == "latent":
        assert not images.requires_grad
    assert np.isfinite(np.asarray(images[0] if kind == "pil" else images)).all()


@pytest.mark.parametrize("broken", ["scorer", "callback"])
def test_after_an_exception_all_is_as_it_was(broken):
    pipe = tiny_pipes.make("Flux")
    plain = run(pipe, "Flux")
    before = state(pipe)

    def breaking(*_):
        raise KeyError(broken)

    more = dict(callback_on_step_end=breaking) if broken == "callback" else {}
    with pytest.raises(KeyError, match=broken):
        with guidance(pipe, breaking if broken == "scorer" else red):
            run(pipe, "Flux", **more)
    assert state(pipe) == before and torch.is_grad_enabled()
    assert torch.equal(run(pipe, "Flux"), plain)
    with torch.no_grad(), guidance(pipe):
        run(pipe, "Flux")
        assert not torch.is_grad_enabled()


def test_a_guided_sample_is_the_same_in_a_batch_and_alone():
    pipe = tiny_pipes.make("SD3")
    named = tiny_pipes.call("SD3", 2)
    with guidance(pipe):
        together = tiny_pipes.output(pipe, named)
        alone = [tiny_pipes.output(pipe, tiny_pipes.sample(named, i))[0] for i in range(2)]
    torch.testing.assert_close(
        together, torch.stack(alone), rtol=0, atol=1e-5 * together.abs().max()
    )


def test_what_does_not_go_together_is_refused_by_name():
    with pytest.raises(ValueError, match="through_model=True takes the context"):
        RewardCallback(red, through_model=True)
    pipe = tiny_pipes.make("SD 1.5")
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="not under torch.inference_mode"),
    ):
        with guidance(pipe):
            run(pipe, "SD 1.5")

    def replacing(pipe, i, t, kwargs):
        return {"latents": kwargs["latents"].detach().clone()}

    hooked = dict(callback_on_step_end=replacing, callback_on_step_end_tensor_inputs=["latents"])
    with pytest.raises(RuntimeError, match="step 1 requires no gradient: a callback that returns"):
        with guidance(pipe):
            run(pipe, "SD 1.5", **hooked)
    own = pipe.unet.forward
    pipe.unet.forward = torch.no_grad()(own)
    with pytest.raises(
        RuntimeError, match="the denoiser gives no gradient .*without through_model"
    ):
        with guidance(pipe):
            run(pipe, "SD 1.5")
    pipe.unet.forward = own
    with guidance(pipe):  # and after all of that
        run(pipe, "SD 1.5")


def test_offload_and_caches_are_refused_by_name():
    pipe = tiny_pipes.make("Flux")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(
        NotImplementedError, match="FluxTransformer2DModel .* has hooks .*disable_cache"
    ):
        with guidance(pipe):
            pass
    pipe.transformer.disable_cache()
    with guidance(pipe):
        run(pipe, "Flux")
    pipe = tiny_pipes.make("SD 1.5")
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(NotImplementedError, match="has hooks .AlignDevicesHook.*remove_all_hooks"):
        with guidance(pipe):
            pass
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
