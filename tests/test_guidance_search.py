"""Best of N on tiny pipelines of the real classes."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import tiny_pipes
import torch
from stub import Brightness

import tastemaker
from tastemaker import ranking
from tastemaker.guidance.calibrate import PruningCalibration
from tastemaker.guidance.halving import Cut
from tastemaker.guidance.pipelines import RewardCallback, reward_guidance
from tastemaker.guidance.sampling import one_prompt_each, prompts_of
from tastemaker.guidance.search import best_of_n, combine

PIPES = tuple(tiny_pipes.BUILDERS)


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def call(name):
    """The arguments that a search leaves to the user."""
    return {key: value for key, value in tiny_pipes.call(name).items() if key != "generator"}


def run(name, scorer=red, pipe=None, **options):
    pipe = pipe or tiny_pipes.make(name)
    options = {"pipe_kwargs": call(name), "progress": False, **options}
    return best_of_n(pipe, scorer, **options)


def plain(name, seed, **more):
    """What the pipeline makes of a seed by itself, as an array of its pixels."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {**call(name), "output_type": "pil", **more}
    output = tiny_pipes.make(name)(**arguments, generator=generator)
    return array((output.frames if hasattr(output, "frames") else output.images)[0])


def array(image):
    """[H, W, 3] of a picture, [T, H, W, 3] of a video."""
    frames = image if isinstance(image, list) else [image]
    return np.stack([np.array(frame, float) for frame in frames]).squeeze()


@pytest.mark.parametrize("name", PIPES)
def test_one_of_one_is_the_plain_pipeline(name):
    result = run(name, n=1, seeds=[7])
    one = torch.Generator().manual_seed(7)
    named = {**call(name), "generator": one, "output_type": "latent", "return_dict": False}
    assert torch.equal(result.latents, tiny_pipes.make(name)(**named)[0])
    assert np.array_equal(array(result.images[0]), plain(name, 7))
    assert result.seeds == result.all_seeds == [7]


@pytest.mark.parametrize("name", PIPES)
def test_keeps_the_best_and_says_which(name):
    result = run(name, n=6, keep=2, batch_size=4, seeds=3)
    scores = result.all_scores
    assert result.all_seeds == list(range(3, 9)) and len(scores) == 6
    kept = ranking.top_k(scores, 2).kept
    assert result.seeds == [3 + int(i) for i in kept]
    assert torch.equal(result.scores, scores[kept])
    assert len(result.images) == len(result.latents) == 2
    for image, seed, score in zip(result.images, result.seeds, result.scores, strict=True):
        alone = plain(name, seed)
        assert np.abs(array(image) - alone).max() <= 1  # rounding of batches
        pixels = torch.from_numpy(alone).movedim(-1, -3).reshape(-1, 3, *alone.shape[-3:-1]) / 255
        assert float(score) == pytest.approx(float(red(pixels).mean()), abs=2e-3)


@pytest.mark.parametrize("name", PIPES)
def test_batches_change_nothing(name):
    whole, parts = (run(name, n=5, keep=5, batch_size=b) for b in (5, 2))
    assert whole.seeds == parts.seeds
    torch.testing.assert_close(whole.all_scores, parts.all_scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.latents, parts.latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_it_strays_from_the_model_by_no_more_than_is_known(n):
    """KL(best of n || model) <= log n - (n - 1) / n, on a pipeline with three pictures, exactly."""
    pipe, p = tiny_pipes.make("SD 1.5"), [0.5, 0.3, 0.2]
    q = [0.0, 0.0, 0.0]
    for seeds in itertools.product(range(3), repeat=n):
        chosen = run("SD 1.5", pipe=pipe, n=n, batch_size=n, seeds=seeds).seeds[0]
        q[chosen] += math.prod(p[seed] for seed in seeds)
    assert sum(q) == pytest.approx(1)
    divergence = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b)
    bound = math.log(n) - (n - 1) / n
    assert divergence <= bound + 1e-9
    assert divergence > 0.2 * bound - 1e-9  # it does choose
    order = run("SD 1.5", pipe=pipe, n=3, keep=3, batch_size=3).seeds[::-1]  # the worst first
    below = [sum(p[i] for i in order[:k]) for k in range(4)]
    wanted = {seed: below[k + 1] ** n - below[k] ** n for k, seed in enumerate(order)}
    assert q == pytest.approx([wanted[seed] for seed in range(3)])


def test_what_it_cost():
    result = run("SD 1.5", n=5, batch_size=2, held_out=Brightness())
    steps = call("SD 1.5")["num_inference_steps"]
    assert result.record.denoiser_calls == 5 * steps
    assert result.record.scorer_calls == 2 * 3
    assert result.held_out.shape == (1,)
    (row,) = result.record.rows
    assert (row.index, row.sigma, row.noise_ratio) == (steps, 0.0, 0.0)
    assert torch.equal(row.reward, result.all_scores) and row.held_out.shape == (5,)
    assert result.record.plot("best of 5").size[0] == 900


def test_the_candidates_of_a_guided_pipeline():
    """In each batch, all of them are guided; and one of one is the guided pipeline."""
    pipe = tiny_pipes.make("SD 1.5")
    alone = run("SD 1.5", n=4, keep=4, batch_size=4)
    with reward_guidance(pipe, red, window=(0, 1)):
        found = run("SD 1.5", pipe=pipe, n=4, keep=4, batch_size=2)
        one = run("SD 1.5", pipe=pipe, n=1, seeds=[7])
        named = {**call("SD 1.5"), "generator": torch.Generator().manual_seed(7)}
        latents = pipe(**named, output_type="latent").images
        with pytest.raises(RuntimeError, match="tapped already"):
            run("SD 1.5", pipe=pipe, n=4, prune="halving")
    assert (found.all_scores > alone.all_scores).all()
    assert torch.equal(one.latents, latents)


def test_a_list_of_prompts_is_a_search_for_each():
    heard = []

    class Pipe:
        """What a search needs of a pipeline, with texts."""

        def __call__(
            self,
            prompt=None,
            num_images_per_prompt=1,
            generator=None,
            output_type=None,
            negative_prompt=None,
        ):
            heard.append((prompt, negative_prompt, num_images_per_prompt))
            shift = {"red": 0.0, "blue": 0.2}[prompt]
            made = [torch.rand(3, 4, 4, generator=g) + shift for g in generator]
            return type("Output", (), {"images": torch.stack(made).clamp(0, 1)})()

    asked = []

    def reader(images, prompts):
        asked.append(prompts)
        return images.mean((1, 2, 3))

    kwargs = dict(prompt=["red", "blue"], negative_prompt=["x", "y"])
    result = best_of_n(
        Pipe(), reader, n=3, keep=2, batch_size=2, pipe_kwargs=kwargs, progress=False
    )
    assert heard == [("red", "x", 2), ("red", "x", 1), ("blue", "y", 2), ("blue", "y", 1)]
    assert asked == [["red"] * 2, ["red"], ["blue"] * 2, ["blue"]]
    assert result.prompts == ["red", "red", "blue", "blue"]
    assert result.all_seeds == [0, 1, 2, 0, 1, 2] and result.latents is None


@pytest.mark.parametrize("count", [1, 2])
def test_only_prompts_are_taken_apart(count):
    """Other lists of texts may happen to be as long."""
    several = dict(prompt=["a cat", "a dog"][:count], negative_prompt_2=["bird", "fish"][:count])
    alike = dict(callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"][:count], size=[8])
    runs = one_prompt_each(several | alike)
    assert [(each["prompt"], each["negative_prompt_2"]) for each in runs] == [
        ("a cat", "bird"),
        ("a dog", "fish"),
    ][:count]
    assert all({name: each[name] for name in alike} == alike for each in runs)


READERS = {
    "best_of_n": dict(n=2, batch_size=2),
    "best_of_n, pruned": dict(n=4, batch_size=4, prune=[(0.5, 0.5)]),
    "steer_particles": dict(n=2, at=[0.5]),
    "search_noise": dict(rounds=2, n=2),
    "optimize_noise": dict(iterations=1),
}


@pytest.mark.parametrize("method", READERS)
def test_scorers_read_the_prompts_of_embeddings_too(method):
    asked = []

    def reader(images, prompts=None):
        asked.append((len(images), prompts))
        return red(images)

    def found(**more):
        asked.clear()
        options = dict(held_out=reader, pipe_kwargs=call("SD 1.5"), progress=False) | more
        pipe, function = tiny_pipes.make("SD 1.5"), getattr(tastemaker, method.split(",")[0])
        return function(pipe, reader, **READERS[method], **options)

    assert set(found().prompts) == {None} and {prompts for _, prompts in asked} == {None}
    for prompts in ("a fox", ["a fox"]):
        assert set(found(prompts=prompts).prompts) == {"a fox"}
        assert asked and all(given == ["a fox"] * count for count, given in asked)
    with pytest.raises(ValueError, match="2 prompts for 1: give one for each"):
        found(prompts=["a fox", "a hare"])
    with pytest.raises(TypeError, match="prompts are texts, .* got 7"):
        found(prompts=7)


def test_prompts_for_scorers_may_differ_from_the_pipelines():
    runs = one_prompt_each(dict(prompt=["a cat", "a dog"]))
    assert prompts_of(runs, None) == ["a cat", "a dog"]
    assert prompts_of(runs, ["fur", "paws"]) == ["fur", "paws"]


@pytest.mark.parametrize("method", READERS)
@pytest.mark.parametrize("pipe", ["a/model", lambda **named: None])
def test_what_is_no_pipeline_is_named(method, pipe):
    if method == "best_of_n" and callable(pipe):
        return  # needs no scheduler
    function = getattr(tastemaker, method.split(",")[0])
    with pytest.raises(TypeError, match="pipe is a diffusers pipeline, got (str|function)"):
        function(pipe, red, **READERS[method], pipe_kwargs=dict(prompt="a fox"), progress=False)


def test_a_calibration_is_cuts():
    options = dict(n=4, batch_size=4)
    calibration = PruningCalibration([], [], [], [Cut(0.5, 0.5)], 1.0, 0.75)
    pruned = run("SD 1.5", prune=calibration, **options)
    assert [len(alive) for alive in pruned.record.survivors] == [2]
    assert pruned.seeds == run("SD 1.5", prune=calibration.cuts, **options).seeds
    nothing = PruningCalibration([], [], [], [], 1.0, 1.0)  # no pruning keeps enough
    assert run("SD 1.5", prune=nothing, **options).record.survivors == []


SDE = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@pytest.mark.parametrize("name", ["SD3", "Flux", "Wan"])
@pytest.mark.parametrize("prune", [None, [(0.5, 0.5)]])
def test_seeds_reach_a_scheduler_whose_pipeline_keeps_the_generator_to_itself(name, prune):
    def found(torch_seed, **options):
        torch.manual_seed(torch_seed)
        shifts = dict(use_dynamic_shifting=True, time_shift_type="exponential")
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **SDE, algorithm_type="sde-dpmsolver++", **(shifts if name == "Flux" else {})
        )
        pipe = tiny_pipes.make(name, scheduler)
        result = run(name, pipe=pipe, **options)
        assert type(pipe.scheduler) is diffusers.DPMSolverMultistepScheduler
        assert not [key for key in vars(scheduler) if "tastemaker" in key]
        return result

    whole = found(1, n=4, keep=2, batch_size=4, prune=prune)
    again = found(2, n=4, keep=2, batch_size=4, prune=prune)
    assert whole.seeds == again.seeds and torch.equal(whole.latents, again.latents)
    for seed, latents in zip(whole.seeds, whole.latents, strict=True):
        alone = found(3, n=1, seeds=[seed])
        torch.testing.assert_close(alone.latents[0], latents, rtol=1e-4, atol=1e-4)


def test_memory_that_runs_out_halves_the_batch():
    pipe, sizes = tiny_pipes.make("SD 1.5"), []
    own = pipe.unet.forward

    def hungry(sample, *args, **named):
        sizes.append(len(sample))
        if len(sample) > 4:  # two candidates with CFG
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return own(sample, *args, **named)

    pipe.unet.forward = hungry
    result = run("SD 1.5", pipe=pipe, n=8, batch_size=8)
    assert max(sizes[2:]) <= 4 and sizes[0] == 16
    pipe.unet.forward = own
    torch.testing.assert_close(
        result.all_scores, run("SD 1.5", pipe=pipe, n=8, batch_size=2).all_scores, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("prune", [None, [(0.5, 0.9)]])
def test_memory_that_runs_out_in_a_scorer_halves_the_batch(prune, held_out):
    sizes = []

    def hungry(images):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return red(images)

    scorers = dict(scorer=red, held_out=hungry) if held_out else dict(scorer=hungry)
    found = run("SD 1.5", n=6, keep=2, batch_size=6, prune=prune, **scorers)
    assert sizes[0] > 2 and all(size <= 2 for size in sizes[2:])
    plain = run("SD 1.5", n=6, keep=2, batch_size=2, prune=prune, held_out=red)
    assert found.seeds == plain.seeds
    torch.testing.assert_close(found.scores, plain.scores, atol=1e-5, rtol=0)
    if held_out:
        torch.testing.assert_close(found.held_out, plain.held_out, atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        run("SD 1.5", lambda images: hungry(images.repeat(3, 1, 1, 1)), n=2, prune=prune)


def test_a_callback_of_the_users_own_is_still_called():
    seen = []

    def callback(pipe, i, t, kwargs):
        seen.append((i, sorted(kwargs)))
        return kwargs

    kwargs = {**call("SD 1.5"), "callback_on_step_end": callback}
    run("SD 1.5", n=1, pipe_kwargs=kwargs)
    assert [i for i, _ in seen] == list(range(kwargs["num_inference_steps"]))
    assert seen[0][1] == ["latents"]


def test_several_scorers_are_compared_by_ranks():
    table = torch.tensor([[0.0, 1.0, 2.0, 3.0], [100.0, 400.0, 300.0, 200.0]])
    assert int(combine(table, [1.0, 0.0]).argmax()) == 3
    assert int(combine(table, [0.2, 0.8]).argmax()) == 1
    torch.testing.assert_close(combine(table * 7 - 3, [0.5, 0.5]), combine(table, [0.5, 0.5]))
    table[0, 1] = torch.nan
    assert combine(table, [0.5, 0.5]).isnan().tolist() == [False, True, False, False]


def test_a_scorer_that_fails_does_so_after_the_first_batch():
    pipe, calls = tiny_pipes.make("SD 1.5"), []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    for n in (2, 8):
        calls.clear()
        with pytest.raises(ValueError, match=r"must give a Tensor\[2\]"):
            run("SD 1.5", lambda x: x, pipe, n=n, batch_size=2)
        assert len(calls) == call("SD 1.5")["num_inference_steps"]


def test_seeds_may_be_of_any_kind_of_integer():
    wanted = run("SD 1.5", n=2, seeds=[3, 4]).all_seeds
    for seeds in (3, torch.tensor([3, 4]), np.array([3, 4]), range(3, 5)):
        found = run("SD 1.5", n=2, seeds=seeds).all_seeds
        assert found == wanted and all(type(seed) is int for seed in found)


def test_candidates_without_a_score_are_never_kept():
    def sometimes(images):
        scores = red(images)
        return torch.where(scores == scores.max(), torch.nan, scores)

    result = run("SD 1.5", sometimes, n=4, keep=4, batch_size=4)
    assert len(result.images) == 3 and not result.scores.isnan().any()
    with pytest.raises(ValueError, match="none of 2 candidates has a score"):
        run("SD 1.5", lambda images: red(images) * torch.nan, n=2)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(n=2, keep=3), "1 <= keep <= n"),
        (dict(n=0, keep=0), "1 <= keep <= n"),
        (dict(n=2, seeds=[1]), "1 seeds"),
        (dict(n="2"), "of '2'"),
        (dict(n=2, seeds=[0.5, 1.5]), r"seeds=\[0.5, 1.5\]"),
        (dict(n=2, seeds="ab"), "seeds='ab'"),
        (dict(n=2, batch_size=0), "batch_size"),
        (dict(n=2, batch_size=None), "batch_size must be at least 1, a whole number, got None"),
        (dict(n=2, held_out="nano"), "a scorer is a callable, got str"),
        (dict(n=2, prune="half"), "prune is \"halving\", .* got 'half'"),
        (dict(n=2, prune=True), 'prune is "halving", .* got True'),
        (dict(n=2, decode="taesd"), "decode is \"vae\", .* got 'taesd'"),
        (dict(n=2, decode=None, prune="halving"), 'decode is "vae", .* got None'),
        (dict(n=2, pipe="a/model"), "pipe is a diffusers pipeline, got str"),
        (dict(n=2, pipe_kwargs="a lighthouse"), r"dict\(prompt=...\), got 'a lighthouse'"),
        (dict(n=2, pipe_kwargs=dict(prompt=[])), "an empty list of prompts"),
        (dict(n=2, scorer="nano"), "a scorer is a callable, got str"),
        (dict(n=2, scorer=lambda x: x.mean()), r"must give a Tensor\[2\], got \[\]"),
        (dict(n=2, scorer=lambda x: [0.0, 1.0]), r"must give a Tensor\[2\], got list"),
        (
            dict(n=2, pipe_kwargs=dict(callback_on_step_end=RewardCallback(red))),
            "with reward_guidance",
        ),
        (dict(n=2, pipe_kwargs=dict(generator=torch.Generator())), "leave generator to the search"),
        (dict(n=2, pipe_kwargs=dict(prompt_embeds=torch.zeros(2, 3, 4))), "one prompt at a time"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run("SD 1.5", **options)
