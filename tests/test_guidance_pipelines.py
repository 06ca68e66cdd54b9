"""Reward guidance of real pipelines, as a context and as a callback."""

import functools
import inspect
from contextlib import ExitStack

import diffusers
import pytest
import tiny_pipes
import torch
from stub import Brightness

import tastemaker
from tastemaker.guidance import (
    best_of_n,
    calibrate_pruning,
    optimize_noise,
    search_noise,
    steer_particles,
)
from tastemaker.guidance.initial import replaced
from tastemaker.guidance.pipelines import RewardCallback, reward_guidance
from tastemaker.guidance.prompts import texts, watched_prompts
from tastemaker.guidance.rewards import one_an_image

PIPES = ("SD 1.5", "SDXL", "SD3", "Flux", "Qwen-Image", "Z-Image", "Wan")


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def run(pipe, name, count=2, size=None, **more):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    named = tiny_pipes.call(name, count, size)
    output = pipe(**{**named, "generator": generators, "output_type": "pt"} | more)
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


def climbed(pipe, scorer, name):
    named = {key: v for key, v in tiny_pipes.call(name).items() if key != "generator"}
    optimize_noise(pipe, scorer, iterations=1, pipe_kwargs=named, progress=False)


def in_context(pipe, scorer, name, **options):
    with reward_guidance(pipe, scorer, window=(0, 1), **options):
        run(pipe, name)


GRADIENTS = {
    "context": in_context,
    "through": lambda *given: in_context(*given, through_model=True),
    "callback": lambda pipe, scorer, name: run(
        pipe, name, **hooked(RewardCallback(scorer, window=(0, 1), pipe=pipe))
    ),
    "climb": climbed,
}


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("way", GRADIENTS)
def test_the_scorers_and_the_pipelines_weights_get_no_gradient(name, way):
    pipe, scorer = tiny_pipes.make(name), tastemaker.load_scorer("nano", device="cpu")
    scorer.requires_grad_(True)
    GRADIENTS[way](pipe, scorer, name)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    modules = [scorer, pipe.vae, denoiser]
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert all(p.requires_grad for module in modules for p in module.parameters())  # as they were


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


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("size", [(32, 64), (64, 32)], ids=str)  # as many latents, packed or not
def test_the_callback_alone_leaves_the_first_step_unguided(name, size):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name, size=size)
    callback = RewardCallback(red, scale=0.1, window=(0, 1))
    guided = run(pipe, name, size=size, **hooked(callback))
    assert reward(guided) > reward(plain)
    assert [row.index for row in callback.record.rows] == list(range(tiny_pipes.STEPS - 1))
    again = run(pipe, name, size=size, **hooked(callback))  # the same object serves the next run
    assert torch.equal(again, guided)
    assert torch.equal(run(pipe, name, size=size), plain)
    after_the_first = (0, callback.record.rows[0].noise_ratio)
    with reward_guidance(pipe, red, scale=0.1, window=after_the_first):
        assert torch.equal(run(pipe, name, size=size), guided)


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_the_callback_alone_knows_a_size_that_the_pipeline_chose(name):
    pipe = tiny_pipes.make(name)
    pipe.default_sample_size = 4
    callback = RewardCallback(red, window=(0, 1))
    own = dict(height=None, width=2 * 4 * pipe.vae_scale_factor)
    pictures = run(pipe, name, **own, **hooked(callback))
    assert pictures.shape[-1] == 2 * pictures.shape[-2]
    assert all(row.push.min() > 0 for row in callback.record.rows)


def test_a_callback_that_no_call_of_the_pipeline_calls_is_refused_before_it_guides():
    pipe = tiny_pipes.make("Flux")
    run(pipe, "Flux")
    before = state(pipe)
    with pytest.raises(
        RuntimeError, match=r"call of FluxPipeline .* RewardCallback\(..., pipe=pipe"
    ):
        RewardCallback(red)(pipe, 0, None, {})
    assert is_itself(pipe, before)


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


@pytest.mark.parametrize("name", PIPES)
def test_a_run_that_breaks_off_before_its_first_step_leaks_neither(name):
    pipe = tiny_pipes.make(name)
    plain = run(pipe, name)
    callback = RewardCallback(red, window=(0, 1), pipe=pipe)
    with pytest.raises(AttributeError):
        run(pipe, name, latents="none", **hooked(callback))
    assert callback.record.rows == [] and torch.equal(run(pipe, name), plain)
    assert not (vars(pipe).keys() & {"check_inputs", "encode_prompt", "prepare_latents"})


def test_a_run_that_never_began_is_told_by_the_next_one():
    """A misspelt argument: the pipeline calls nothing by which the callback could know."""
    pipe = tiny_pipes.make("Flux")
    plain = run(pipe, "Flux")
    with pytest.raises(TypeError, match="steps"):
        run(pipe, "Flux", steps=4, **hooked(RewardCallback(red, window=(0, 1), pipe=pipe)))
    with pytest.raises(RuntimeError, match="armed for a run that never began: .* again"):
        run(pipe, "Flux")
    assert torch.equal(run(pipe, "Flux"), plain)


METHODS = {
    "callback": lambda pipe: run(
        pipe, "SD 1.5", **hooked(RewardCallback(red, window=(0, 1), pipe=pipe))
    ),
    "particles": lambda pipe: steer_particles(pipe, red, n=2, **given()).latents,
    "best": lambda pipe: best_of_n(pipe, red, n=4, prune=[(0.5, 0.5)], **given()).latents,
    "noise": lambda pipe: search_noise(pipe, red, rounds=2, n=1, **given()).latents,
    "climb": lambda pipe: optimize_noise(pipe, red, iterations=1, **given()).latents,
    "calibrated": lambda pipe: torch.tensor(
        calibrate_pruning(pipe, red, 4, n=4, **given()).correlation
    ),
}


def given():
    named = {key: v for key, v in tiny_pipes.call("SD 1.5").items() if key != "generator"}
    return dict(pipe_kwargs=named, progress=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("swapped", [False, True])
def test_after_a_callbacks_run_that_broke_off_everything_else_works(method, swapped):
    """As in a notebook whose cell was interrupted and is run again, also with a new scheduler."""
    pipe, other = tiny_pipes.make("SD 1.5"), tiny_pipes.make("SD 1.5")

    def interrupted(pipe, i, t, kwargs):
        raise KeyboardInterrupt

    stale = RewardCallback(red, scale=0.2, window=(0, 1), pipe=pipe)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, "SD 1.5", **hooked(interrupted))
    if swapped:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(METHODS[method](pipe), METHODS[method](other))
    assert not (vars(pipe).keys() & {"check_inputs", "encode_prompt", "prepare_latents"})
    stale.disarm()  # has nothing left to do
    assert torch.equal(run(pipe, "SD 1.5"), run(other, "SD 1.5"))


def test_another_scheduler_after_a_run_that_broke_off_is_guided_too():
    pipe, callback = tiny_pipes.make("SD 1.5"), RewardCallback(red, window=(0, 1))

    def breaking(pipe, i, t, kwargs):
        callback(pipe, i, t, kwargs)
        raise KeyError

    with pytest.raises(KeyError):
        run(pipe, "SD 1.5", **hooked(breaking))
    before = pipe.scheduler
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**tiny_pipes.SD_SCHEDULE)
    run(pipe, "SD 1.5", **hooked(callback))
    assert len(callback.record.rows) == tiny_pipes.STEPS - 1
    assert type(before) is diffusers.DDIMScheduler
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler


@pytest.mark.parametrize("name", ["SD 1.5", "Flux"])
@pytest.mark.parametrize("way", ["callback", "context"])
def test_a_broken_run_on_another_scheduler_takes_nothing_from_the_next_guidance(name, way):
    """That hears its prompts and its size, and leaves nothing behind."""
    pipe, reader = tiny_pipes.make(name), Reader()
    named = worded(pipe, name)
    pipe(**named)
    before = set(vars(pipe))

    def breaking(pipe, i, t, kwargs):
        raise KeyError

    stale = RewardCallback(red, window=(0, 1), pipe=pipe)
    with pytest.raises(KeyError):
        pipe(**named, **hooked(breaking))
    left, pipe.scheduler = pipe.scheduler, type(pipe.scheduler).from_config(pipe.scheduler.config)
    if way == "callback":
        pipe(**named, **hooked(RewardCallback(reader, window=(0, 1), pipe=pipe)))
    else:
        with reward_guidance(pipe, reader, window=(0, 1)):
            pipe(**named)
    assert reader.heard == [["a", "b"]] * tiny_pipes.STEPS
    stale.disarm()  # has nothing left to do
    assert set(vars(pipe)) == before and type(left) is type(pipe.scheduler)


def test_replaced_methods_may_come_back_in_any_order():
    thing = Texts()
    own, calls = thing.prepare_latents, []
    with ExitStack() as outer, ExitStack() as inner:
        for stack, name in [(outer, "first"), (inner, "second"), (outer, "third")]:
            below = thing.prepare_latents

            @functools.wraps(below)
            def method(name=name, below=below):
                calls.append(name)
                below()

            stack.enter_context(replaced(thing, "prepare_latents", method))
        outer.close()
        thing.prepare_latents()
        assert calls == ["second", "first"]  # which still knows the one below it
    assert vars(thing) == {} and thing.prepare_latents == own


@pytest.mark.parametrize("own", [False, True])
def test_weights_and_flags_of_the_decoder_are_as_they_were(own):
    def learns_and_saves(vae):
        names = ("gradient_checkpointing", "_gradient_checkpointing_func")
        flags = [{name: vars(each).get(name) for name in names} for each in vae.modules()]
        return [p.requires_grad for p in vae.parameters()], flags

    pipe = tiny_pipes.make("SD3")
    if own:
        pipe.vae.enable_gradient_checkpointing(lambda function, *args: function(*args))
    next(pipe.vae.parameters()).requires_grad_(False)
    before = learns_and_saves(pipe.vae)
    with pytest.raises(KeyError), reward_guidance(pipe, red):
        assert pipe.vae.is_gradient_checkpointing
        raise KeyError
    assert learns_and_saves(pipe.vae) == before


def test_an_option_that_there_is_not_is_told_with_the_nearest_one():
    pipe = tiny_pipes.make("SD 1.5")
    before = state(pipe)
    with pytest.raises(TypeError, match=r"reward_guidance\(\) has no option windows: .* window\?"):
        with reward_guidance(pipe, red, windows=(0, 1)):
            pass
    for more in ({}, dict(pipe=pipe)):  # at once, not after the first step
        with pytest.raises(TypeError, match="heldout: did you mean held_out"):
            RewardCallback(red, heldout=red, **more)
    with pytest.raises(TypeError, match="no option x: there are .*stop_on_gap"):
        RewardCallback(red, x=1)
    assert is_itself(pipe, before)
    RewardCallback(red, pipe=pipe, through_model=False).disarm()


def test_a_callback_that_was_armed_for_another_pipeline_says_so():
    pipe, other = tiny_pipes.make("SD 1.5"), tiny_pipes.make("SD 1.5")
    callback = RewardCallback(red, pipe=pipe)
    with pytest.raises(ValueError, match="armed for another StableDiffusionPipeline"):
        run(other, "SD 1.5", **hooked(callback))
    assert type(pipe.scheduler) is diffusers.DDIMScheduler


def test_an_unknown_pipeline_or_scheduler_is_refused_before_anything_runs():
    pipe = tiny_pipes.make("SD 1.5", diffusers.KDPM2DiscreteScheduler(**tiny_pipes.SD_SCHEDULE))
    before = state(pipe)
    with pytest.raises(NotImplementedError, match="KDPM2DiscreteScheduler is not supported"):
        with reward_guidance(pipe, red):
            pass
    assert is_itself(pipe, before)

    with pytest.raises(TypeError, match="a diffusers pipeline with a scheduler, got str"):
        with reward_guidance("a/model", red):
            pass

    class OtherPipeline:
        scheduler = diffusers.DDIMScheduler(clip_sample=False)

    with pytest.raises(NotImplementedError, match="OtherPipeline .* give a callable"):
        with reward_guidance(OtherPipeline(), red):
            pass


# --- prompts --------------------------------------------------------------------------------------


class Texts:
    """What `watched_prompts` needs of a pipeline."""

    def check_inputs(self, prompt):
        if prompt == "bad":
            raise KeyError(prompt)

    def encode_prompt(self, prompt=None, device=None, num_images_per_prompt=1, prompt_embeds=None):
        return prompt

    def __call__(self, prompt=None, prompt_embeds=None, negative=None):
        self.check_inputs(prompt)
        self.encode_prompt(prompt, prompt_embeds=prompt_embeds)
        if negative is not None:
            self.encode_prompt(prompt=negative)
        self.prepare_latents()

    def prepare_latents(self):
        pass


def test_each_runs_prompts_are_heard_and_not_the_negative_ones():
    pipe, heard = Texts(), []
    with watched_prompts(pipe, heard.append):
        pipe("a")
        pipe(["a", "b"], negative=["c", "d"])
        with pytest.raises(KeyError):
            pipe("bad")
        pipe(prompt_embeds=torch.zeros(1))
        pipe(("e", "f"))
    assert heard == [["a"], ["a", "b"], [], ["e", "f"]]
    assert vars(pipe) == {}
    assert texts(None) == []


def test_a_prompt_is_that_of_as_many_images_in_a_row_as_it_makes():
    assert one_an_image(["a", "b"], 4) == ["a", "a", "b", "b"]
    assert one_an_image(["a"], 1) == ["a"] and one_an_image([], 3) is one_an_image(None, 3) is None
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        one_an_image(["a", "b"], 3)


class Reader:
    """Redness, and the prompts that came with it."""

    def __init__(self):
        self.heard = []

    def __call__(self, images, prompts):
        self.heard.append(prompts)
        return red(images)


def test_prompts_that_are_given_reach_the_scorer():
    reader, pipe = Reader(), tiny_pipes.make("SD 1.5")
    with reward_guidance(pipe, reader, window=(0, 1), prompts=["x", "y"]):
        run(pipe, "SD 1.5")
    assert reader.heard == [["x", "y"]] * tiny_pipes.STEPS


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("way", ["context", "callback", "callback alone"])
def test_the_pipelines_own_prompts_reach_the_scorer(name, way):
    """A list of them, and negative ones that some pipelines encode in a second call."""
    pipe, reader = tiny_pipes.make(name), Reader()
    embedded = {k: v for k, v in tiny_pipes.call(name, 2).items() if "embeds" in k}
    named = {k: v for k, v in tiny_pipes.call(name, 2).items() if k not in embedded}
    # Images a prompt; where embeddings are given, these three do not repeat them.
    count = 1 if name in ("SD3", "Flux", "Wan") else 2
    named |= dict(prompt=["a", "b"], negative_prompt=["c", "d"], output_type="latent")
    if count == 2:
        named["num_images_per_prompt"] = count
        named["generator"] = [torch.Generator().manual_seed(i) for i in range(4)]
    if name in ("Flux", "Qwen-Image"):
        named["true_cfg_scale"] = 2.0
    told = encoding(pipe, name, embedded)
    if way != "context":
        more = dict(pipe=pipe) if way == "callback" else {}
        pipe(**named, **hooked(RewardCallback(reader, window=(0, 1), **more)))
    else:
        with reward_guidance(pipe, reader, window=(0, 1)):
            pipe(**named)
    pictures = 3 if name == "Wan" else count  # of a video, a scorer of pictures sees three frames
    expected = ["a"] * pictures + ["b"] * pictures
    assert reader.heard == [expected] * len(reader.heard) and reader.heard
    assert ["c", "d"] in told  # the negative ones were encoded too


def test_a_callback_alone_hands_on_prompts_that_are_given_and_one_that_is_a_text():
    for given, more, heard in [("a", {}, ["a"] * 2), (["a", "b"], dict(prompts=["x"]), ["x"] * 2)]:
        pipe, reader = tiny_pipes.make("SD 1.5"), Reader()
        named = worded(pipe, "SD 1.5", count=1 if given == "a" else 2)
        named |= dict(prompt=given)
        if given == "a":
            named |= dict(num_images_per_prompt=2, generator=None)
        pipe(**named, **hooked(RewardCallback(reader, window=(0, 1), **more)))
        assert reader.heard == [heard] * (tiny_pipes.STEPS - 1)


def worded(pipe, name, count=2):
    """What to call the pipeline with: "a" and "b", which it is taught to encode."""
    given = tiny_pipes.call(name, count)
    encoding(pipe, name, {k: v for k, v in given.items() if "embeds" in k})
    named = {k: v for k, v in given.items() if "embeds" not in k}
    return named | dict(prompt=["a", "b"][:count], output_type="latent")


def encoding(pipe, name, embedded):
    """Gives the pipeline an `encode_prompt` that needs no text encoder; the texts that it is told."""
    own, told = type(pipe).encode_prompt, []
    signature = inspect.signature(own)

    class Encoding(type(pipe)):
        def encode_prompt(self, *args, **named):
            given = signature.bind(self, *args, **named).arguments
            told.extend(given[key] for key in ("prompt", "negative_prompt") if given.get(key))
            known = {k: v for k, v in embedded.items() if k in signature.parameters}
            return own(**{**given, **known})

    Encoding.__name__ = type(pipe).__name__
    Encoding.encode_prompt.__signature__ = signature
    pipe.__class__ = Encoding
    return told
