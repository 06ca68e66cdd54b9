"""Searching and optimising the initial noise of tiny pipelines of the real classes."""

import diffusers
import pytest
import tiny_pipes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub import Brightness

from tastemaker.guidance.climb import moved
from tastemaker.guidance.initial import initial_noise
from tastemaker.guidance.noise import neighbours, optimize_noise, search_noise
from tastemaker.guidance.search import best_of_n

PIPES = tuple(tiny_pipes.BUILDERS)
SD = tiny_pipes.SD_SCHEDULE
SCHEDULERS = {
    "Euler": (diffusers.EulerDiscreteScheduler, SD),
    "Heun": (diffusers.HeunDiscreteScheduler, SD),
    "DPM++": (diffusers.DPMSolverMultistepScheduler, SD),
    "UniPC": (diffusers.UniPCMultistepScheduler, SD),
}
FEW = 3


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def call(name, **more):
    named = {key: value for key, value in tiny_pipes.call(name).items() if key != "generator"}
    return {**named, "num_inference_steps": FEW, **more}


def make(name, scheduler=None):
    if scheduler is None:
        return tiny_pipes.make(name)
    kind, options = SCHEDULERS[scheduler]
    return tiny_pipes.make(name, kind(**options))


def search(name, scorer=red, pipe=None, **options):
    options = {"pipe_kwargs": call(name), "progress": False, **options}
    return search_noise(pipe or make(name), scorer, **options)


def optimize(name, scorer=red, pipe=None, **options):
    options = {"pipe_kwargs": call(name), "progress": False, **options}
    return optimize_noise(pipe or make(name), scorer, **options)


def plain(name, seed, pipe=None):
    """The pipeline's own latents of a seed."""
    generator = [torch.Generator().manual_seed(seed)]
    named = call(name, generator=generator, output_type="latent", return_dict=False)
    return (pipe or make(name))(**named)[0]


def given_back(name, noise, pipe=None):
    """The pipeline's pixels [B, 3, H, W] from a noise."""
    named = call(name, latents=noise, output_type="pt", return_dict=False)
    return (pipe or make(name))(**named)[0]


# --- the noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPES)
def test_the_initial_noise_given_back_is_the_plain_run(name):
    pipe = make(name)
    noise = initial_noise(pipe, [5], call(name))
    assert "prepare_latents" not in vars(pipe)
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    named = call(name, latents=noise, output_type="latent", return_dict=False)
    assert torch.equal(pipe(**named)[0], plain(name, 5))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_before_the_scale_that_a_scheduler_wants(scheduler):
    pipe = make("SD 1.5", scheduler)
    noise = initial_noise(pipe, [5], call("SD 1.5"))
    named = call("SD 1.5", latents=noise, output_type="latent", return_dict=False)
    assert torch.equal(pipe(**named)[0], plain("SD 1.5", 5, make("SD 1.5", scheduler)))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 1.0))
def test_neighbours_are_noise_as_much_as_their_pivot(reach):
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(1, 40000, generator=generator), torch.randn(3, 40000, generator=generator)
    around = neighbours(z[0], eps, reach)
    torch.testing.assert_close(around.std(1), torch.ones(3), rtol=0, atol=0.02)
    cosine = torch.cosine_similarity(around, z)
    torch.testing.assert_close(cosine, torch.full((3,), (1 - reach**2) ** 0.5), rtol=0, atol=0.02)


# --- search ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("method", ["zero-order", "random"])
def test_the_kept_noise_makes_the_kept_image_again(name, method):
    result = search(name, rounds=3, n=2, keep=2, method=method, batch_size=1)
    pixels = torch.cat([given_back(name, noise[None]) for noise in result.noise])
    scores = red(pixels.flatten(0, -4)).reshape(2, -1).mean(1)
    assert torch.equal(scores, result.scores)
    again = given_back(name, result.noise[:1])
    frames = result.images[0] if isinstance(result.images[0], list) else [result.images[0]]
    wanted = (again * 255).round().to(torch.uint8).movedim(-3, -1).reshape(-1).tolist()
    assert [v for frame in frames for v in frame.tobytes()] == wanted
    whole = search(name, rounds=3, n=2, keep=2, method=method, batch_size=2)
    torch.testing.assert_close(whole.noise, result.noise)
    torch.testing.assert_close(whole.all_scores, result.all_scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_other_schedulers(scheduler):
    result = search("SD 1.5", pipe=make("SD 1.5", scheduler), rounds=2, n=2, batch_size=1)
    pixels = given_back("SD 1.5", result.noise, make("SD 1.5", scheduler))
    assert torch.equal(red(pixels), result.scores)


@pytest.mark.parametrize("name", ["SD 1.5", "Flux"])
def test_random_search_is_best_of_n(name):
    result = search(name, rounds=2, n=4, keep=3, method="random")
    other = best_of_n(
        make(name), red, n=8, keep=3, batch_size=4, pipe_kwargs=call(name), progress=False
    )
    assert result.seeds == other.seeds and result.all_seeds == list(range(8))
    torch.testing.assert_close(result.all_scores, other.all_scores, rtol=0, atol=1e-5)
    assert result.record.denoiser_calls == other.record.denoiser_calls == 8 * FEW


@pytest.mark.parametrize("name", ["SD 1.5", "Flux"])
def test_zero_order_climbs_past_the_best_of_as_many(name):
    gains = []
    for seed in (0, 100, 200):
        options = dict(rounds=6, n=4, seeds=seed)
        walked, random = (search(name, method=m, **options) for m in ("zero-order", "random"))
        assert walked.record.denoiser_calls == random.record.denoiser_calls
        gains.append(float(walked.scores - random.scores))
        best = walked.all_scores.view(6, 4).amax(1).cummax(0).values
        assert best[-1] > best[0]
        assert [len(row.reward) for row in walked.record.rows] == [4] * 6
    assert sum(gains) > 0, gains


def test_a_search_is_the_same_again():
    first, second, other = (search("SD 1.5", rounds=2, n=3, seeds=s) for s in (1, 1, 9))
    assert torch.equal(first.noise, second.noise) and first.seeds == second.seeds
    assert not torch.equal(first.all_scores, other.all_scores)


def test_a_scorer_without_a_gradient_and_one_that_only_looks():
    def blind(images):
        with torch.no_grad():
            return red(images)

    result = search("SD 1.5", blind, rounds=2, n=2, held_out=Brightness())
    assert result.held_out.shape == (1,) and result.record.rows[1].held_out.shape == (2,)


def test_noises_without_a_score_are_no_pivot():
    def sometimes(images):
        scores = red(images)
        return torch.where(scores == scores.max(), torch.nan, scores)

    result = search("SD 1.5", sometimes, rounds=2, n=3, keep=6)
    assert len(result.images) == 4 and not result.scores.isnan().any()


@pytest.mark.parametrize("find", [search, optimize])
def test_nothing_is_left_on_the_pipeline_after_an_error(find):
    pipe = make("SD 1.5")
    find("SD 1.5", pipe=pipe)
    attributes, flags = set(vars(pipe)), [p.requires_grad for p in pipe.unet.parameters()]
    assert all(flags)

    def failing(images):
        raise KeyError("the scorer broke")

    with pytest.raises(KeyError, match="the scorer broke"):
        find("SD 1.5", failing, pipe)
    assert set(vars(pipe)) == attributes
    assert [p.requires_grad for p in pipe.unet.parameters()] == flags
    assert not pipe.unet.is_gradient_checkpointing


def test_records_say_what_their_rows_are():
    assert search("SD 1.5", rounds=2, n=1).record.across == "round"
    assert optimize("SD 1.5", iterations=1).record.across == "iteration"


@pytest.mark.parametrize("find", [search, optimize])
def test_a_sampler_that_adds_noise_is_refused_by_name(find):
    pipe = tiny_pipes.make("SD 1.5", diffusers.EulerAncestralDiscreteScheduler(**SD))
    with pytest.raises(NotImplementedError, match="EulerAncestralDiscreteScheduler adds noise"):
        find("SD 1.5", pipe=pipe)
    with pytest.raises(NotImplementedError, match="DDIMScheduler adds noise"):
        find("SD 1.5", pipe_kwargs=call("SD 1.5", eta=0.5))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rounds=0), "rounds=0"),
        (dict(seeds=[1, 2]), "2 seeds"),
        (dict(keep=99), "keep=99"),
        (dict(rounds=1.5), "a whole number"),
        (dict(held_out="nano"), "a scorer is a callable, got str"),
        (dict(method="grid"), "method must be one of zero-order, random"),
        (dict(reach=0.0), "reach must be in"),
        (dict(batch_size=0), "batch_size"),
        (dict(pipe_kwargs=dict(latents=torch.zeros(1))), "leave latents to the search"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        search("SD 1.5", **options)


# --- along the gradient ----------------------------------------------------------------------------

CLIMBS = [("SD 1.5", None), ("SD 1.5", "Euler"), ("SD 1.5", "DPM++"), ("SDXL", None)]
CLIMBS += [("SD3", None), ("Flux", None), ("Qwen-Image", None), ("Z-Image", None), ("Wan", None)]


@pytest.mark.parametrize("name, scheduler", CLIMBS)
def test_the_reward_rises_and_no_weight_learns(name, scheduler):
    pipe = make(name, scheduler)
    learning = dict(pipe.vae.named_parameters())
    next(iter(learning.values())).requires_grad_(False)  # as a user may have set it
    flags = [p.requires_grad for p in learning.values()]
    result = optimize(name, pipe=pipe, iterations=3)
    rewards = [float(row.reward) for row in result.record.rows]
    assert len(rewards) == 4 and max(rewards[1:]) > rewards[0]
    assert float(result.scores) == pytest.approx(max(rewards))
    assert [p.requires_grad for p in learning.values()] == flags
    for module in (each for each in pipe.components.values() if isinstance(each, torch.nn.Module)):
        assert all(p.grad is None for p in module.parameters())
    assert result.record.denoiser_calls == (4 * 3 + 1) * FEW
    pixels = given_back(name, result.noise, make(name, scheduler))
    again = red(pixels.flatten(0, -4)).mean()
    assert float(again) == pytest.approx(float(result.scores), abs=1e-5)


@pytest.mark.parametrize("name", PIPES)
def test_no_iteration_is_the_plain_pipeline(name):
    result = optimize(name, iterations=0, seeds=[4, 7])
    for seed, latents in zip(result.seeds, result.latents, strict=True):
        assert torch.equal(latents[None], plain(name, seed))
    assert result.record.denoiser_calls == 2 * FEW


def test_checkpointing_changes_what_it_costs_and_nothing_else():
    with_it, without = (optimize("SD 1.5", checkpointing=c, iterations=2) for c in (True, False))
    torch.testing.assert_close(with_it.noise, without.noise, rtol=1e-4, atol=1e-5)
    assert without.record.denoiser_calls == (3 * 2 + 1) * FEW
    assert with_it.record.denoiser_calls == (4 * 2 + 1) * FEW


def test_checkpointing_calls_the_blocks_again():
    pipe, calls = make("SD 1.5"), []
    pipe.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    optimize("SD 1.5", pipe=pipe, iterations=1, checkpointing=False)
    without = len(calls)
    optimize("SD 1.5", pipe=pipe, iterations=1, checkpointing=True)
    assert len(calls) - without > without
    assert not pipe.unet.is_gradient_checkpointing and not pipe.vae.is_gradient_checkpointing


def test_it_stops_when_the_held_out_reward_falls():
    result = optimize("SD 1.5", held_out=lambda x: -red(x), iterations=5)
    assert len(result.record.rows) == 2 and result.record.stopped and result.record.gap
    torch.testing.assert_close(result.latents, plain("SD 1.5", 0), rtol=1e-4, atol=1e-5)
    going_on = optimize("SD 1.5", held_out=lambda x: -red(x), iterations=3, stop_on_decline=False)
    assert len(going_on.record.rows) == 4 and going_on.record.gap and not going_on.record.stopped
    agreeing = optimize("SD 1.5", held_out=lambda x: 2 * red(x), iterations=3)
    assert float(agreeing.held_out) == pytest.approx(2 * float(agreeing.scores), rel=1e-5)


def test_several_scorers_and_seeds():
    scorers = [(red, 2.0), (lambda x: 1000 * Brightness()(x), 1.0)]
    result = optimize("SD 1.5", scorers, iterations=2, seeds=[3, 5, 8])
    assert sorted(result.seeds) == [3, 5, 8] and len(result.images) == 3
    assert result.noise.shape == result.latents.shape


def test_a_scorer_without_a_gradient_is_refused_by_name():
    def blind(images):
        return red(images.detach())

    with pytest.raises(TypeError, match="blind gives no gradient: use best_of_n"):
        optimize("SD 1.5", blind)


def test_a_pipeline_without_a_gradient_is_refused_by_name():
    pipe = make("SD 1.5")
    own = pipe.unet.forward

    def cut(*args, **named):
        return tuple(each.detach() for each in own(*args, **named))

    pipe.unet.forward = cut
    pipe.vae.decode = lambda z, **named: (z[:, :3].detach(),)
    with pytest.raises(NotImplementedError, match="StableDiffusionPipeline gives no gradient"):
        optimize("SD 1.5", pipe=pipe)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(0, 1))
def test_the_norm_is_taken_back_to_that_of_noise(lr, regulariser):
    generator = torch.Generator().manual_seed(0)
    z, velocity = torch.randn(2, 2, 4, 8, 8, generator=generator)
    velocity = velocity / velocity.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    free, bound = moved(z, velocity, lr, 0.0), moved(z, velocity, lr, regulariser)
    step = (free - z).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(step, torch.full((2,), lr))
    before, after = (x.flatten(1).norm(dim=1) - 255**0.5 for x in (free, bound))
    torch.testing.assert_close(after, (1 - regulariser) * before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(iterations=-1), "iterations=-1"),
        (dict(seeds=[]), "a seed"),
        (dict(lr=-1.0), "lr=-1.0"),
        (dict(regulariser=2.0), "regulariser=2.0"),
    ],
)
def test_bad_arguments_of_the_climb_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optimize("SD 1.5", **options)
