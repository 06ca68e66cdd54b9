"""Reward guidance of real pipelines, as a context and as a callback."""

import inspect

import diffusers
import pytest
import tiny_pipes
import torch
from stub import Brightness

from tastemaker.guidance.pipelines import RewardCallback, reward_guidance
from tastemaker.guidance.prompts import repeated, watched_prompts

PIPES = ("SD 1.5", "SDXL", "SD3", "Flux", "Qwen-Image", "Z-Image", "Wan")


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def run(pipe, name, count=2, **more):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    arguments = {**tiny_pipes.call(name, count), "generator": generators, "output_type": "pt"}
    output = pipe(**arguments, **more)
    return output.frames if hasattr(output, "frames") else output.images


def reward(pixels):
    return red(pixels.reshape(-1, *pixels.shape[-3:])).mean().item()


def is_itself(pipe, before):
    return state(pipe) == before


def state(pipe):
    return type(pipe.scheduler), set(vars(pipe)), set(vars(pipe.scheduler))


@pytest.mark.parametrize("name", PIPES)
def test_the_context_raises_the_reward_and_leaves_no_trace(name):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name)
    before = state(pipe)
    with reward_guidance(pipe, red, scale=0.1, window=(0, 1), held_out=Brightness()) as record:
        guided = run(pipe, name)
    assert reward(guided) > reward(plain)
    assert is_itself(pipe, before)
    assert torch.equal(run(pipe, name), plain)
    assert record.denoiser_calls == 2 * len(record.rows)
    rewards = [row.reward for row in record.rows if row.reward is not None]
    assert len(rewards) == len(record.rows) and all(r.shape == (2,) for r in rewards)


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("options", [dict(scale=0.0), dict(window=(1.0, 1.0)), dict(target=-9.0)])
def test_no_guidance_is_the_plain_pipeline_bit_for_bit(name, options):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name)
    if "window" in options and name not in ("SD 1.5", "SDXL"):
        options = dict(window=(0.0, 0.0))  # flow matching begins at pure noise, r = 1
    with reward_guidance(pipe, red, **options):
        assert torch.equal(run(pipe, name), plain)


def test_two_runs_in_one_context_do_not_know_of_each_other():
    pipe = tiny_pipes.make("SD 1.5")
    with reward_guidance(pipe, red, window=(0, 1)) as record:
        first, second = (run(pipe, "SD 1.5") for _ in range(2))
    assert torch.equal(first, second)
    steps = len(record.rows) // 2
    assert [row.index for row in record.rows] == [*range(steps)] * 2


def test_after_an_exception_the_pipeline_is_itself():
    pipe = tiny_pipes.make("Flux")
    run(pipe, "Flux")  # after which it has the attributes of a run
    before = state(pipe)

    def broken(images):
        raise KeyError("the scorer broke")

    with pytest.raises(KeyError), reward_guidance(pipe, broken, window=(0, 1)):
        run(pipe, "Flux")
    assert is_itself(pipe, before)


def test_the_scorers_and_the_vaes_weights_get_no_gradient():
    pipe, scorer = tiny_pipes.make("SD 1.5"), Brightness()
    scorer.requires_grad_(True)
    with reward_guidance(pipe, scorer, window=(0, 1)):
        run(pipe, "SD 1.5")
    modules = [scorer, pipe.vae, pipe.unet]
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert all(p.requires_grad for p in pipe.vae.parameters())  # as it was


@pytest.mark.parametrize("name", PIPES)
def test_the_callback_with_the_pipeline_is_the_context(name):
    pipe = tiny_pipes.make(name)
    with reward_guidance(pipe, red, scale=0.1, window=(0, 1)):
        expected = run(pipe, name)
    before = state(pipe)
    callback = RewardCallback(red, scale=0.1, window=(0, 1), pipe=pipe)
    found = run(pipe, name, **hooked(callback))
    assert torch.equal(found, expected)
    assert is_itself(pipe, before)


def hooked(callback):
    return dict(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"])


def test_the_callback_alone_leaves_the_first_step_unguided():
    pipe = tiny_pipes.make("SD 1.5")
    plain = run(pipe, "SD 1.5")
    callback = RewardCallback(red, scale=0.1, window=(0, 1))
    guided = run(pipe, "SD 1.5", **hooked(callback))
    assert reward(guided) > reward(plain)
    assert [row.index for row in callback.record.rows] == list(range(tiny_pipes.STEPS - 1))
    again = run(pipe, "SD 1.5", **hooked(callback))  # the same object serves the next run
    assert torch.equal(again, guided)
    assert torch.equal(run(pipe, "SD 1.5"), plain)


@pytest.mark.parametrize("armed", [True, False])
def test_a_callbacks_run_that_broke_off_leaks_into_no_other(armed):
    pipe = tiny_pipes.make("SD 1.5")
    plain = run(pipe, "SD 1.5")
    more = dict(pipe=pipe) if armed else {}
    callback = RewardCallback(red, scale=0.1, window=(0, 1), **more)

    def breaking(pipe, i, t, kwargs):
        callback(pipe, i, t, kwargs)
        if i == 1:
            raise KeyError("interrupted")
        return kwargs

    with pytest.raises(KeyError):
        run(pipe, "SD 1.5", **hooked(breaking))
    assert torch.equal(run(pipe, "SD 1.5"), plain)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert "prepare_latents" not in vars(pipe) and "encode_prompt" not in vars(pipe)


def test_an_unknown_pipeline_or_scheduler_is_refused_before_anything_runs():
    pipe = tiny_pipes.make("SD 1.5", diffusers.KDPM2DiscreteScheduler(**tiny_pipes.SD_SCHEDULE))
    before = state(pipe)
    with pytest.raises(NotImplementedError, match="KDPM2DiscreteScheduler is not supported"):
        with reward_guidance(pipe, red):
            pass
    assert is_itself(pipe, before)

    class OtherPipeline:
        scheduler = diffusers.DDIMScheduler(clip_sample=False)

    with pytest.raises(NotImplementedError, match="OtherPipeline .* give a callable"):
        with reward_guidance(OtherPipeline(), red):
            pass


# --- prompts --------------------------------------------------------------------------------------


class Texts:
    """What `watched_prompts` needs of a pipeline."""

    def encode_prompt(self, prompt=None, device=None, num_images_per_prompt=1, prompt_embeds=None):
        return prompt


def test_prompts_are_heard_one_an_image():
    pipe, heard = Texts(), []
    with watched_prompts(pipe, heard.append):
        assert "num_images_per_prompt" in inspect.signature(Texts.encode_prompt).parameters
        pipe.encode_prompt("a")
        pipe.encode_prompt(["a", "b"], num_images_per_prompt=2)
        pipe.encode_prompt(prompt_embeds=torch.zeros(1))
    assert heard == [["a"], ["a", "a", "b", "b"]]
    assert vars(pipe) == {}
    assert repeated(None, 3) == []


def test_prompts_that_are_given_reach_the_scorer():
    heard = []

    def reader(images, prompts):
        heard.append(prompts)
        return red(images)

    pipe = tiny_pipes.make("SD 1.5")
    with reward_guidance(pipe, reader, window=(0, 1), prompts=["x", "y"]):
        run(pipe, "SD 1.5")
    assert heard == [["x", "y"]] * tiny_pipes.STEPS
