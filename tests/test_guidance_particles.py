"""Particles: the weights on a chain that is solved exactly, and the rest on tiny pipelines."""

import math

import diffusers
import pytest
import tiny_pipes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub import Brightness

from tastemaker.guidance.particles import steer_particles
from tastemaker.guidance.picture import placed, shares
from tastemaker.guidance.prune import denoisers
from tastemaker.guidance.record import Record, Row
from tastemaker.guidance.resample import Weights, effective, renoised, spread, systematic
from tastemaker.guidance.schedulers import Level
from tastemaker.guidance.search import best_of_n

STEPS = 8


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def arguments(name, **more):
    named = {key: value for key, value in tiny_pipes.call(name).items() if key != "generator"}
    return {**named, "num_inference_steps": STEPS, **more}


SD = tiny_pipes.SD_SCHEDULE
CASES = {
    "SD 1.5 with DDIM": ("SD 1.5", diffusers.DDIMScheduler, dict(SD, clip_sample=False)),
    "SD 1.5 with Euler": ("SD 1.5", diffusers.EulerDiscreteScheduler, SD),
    "SD 1.5 with Heun": ("SD 1.5", diffusers.HeunDiscreteScheduler, SD),
    "SD 1.5 with DPM++": ("SD 1.5", diffusers.DPMSolverMultistepScheduler, SD),
    "SD 1.5 with Euler ancestral": ("SD 1.5", diffusers.EulerAncestralDiscreteScheduler, SD),
    "SDXL": ("SDXL", None, {}),
    "SD3": ("SD3", None, {}),
    "Flux": ("Flux", None, {}),
    "Qwen-Image": ("Qwen-Image", None, {}),
    "Z-Image": ("Z-Image", None, {}),
    "Wan with UniPC": ("Wan", None, {}),
}
RANDOM = "SD 1.5 with Euler ancestral"
DETERMINISTIC = [case for case in CASES if case != RANDOM]


def make(case):
    name, scheduler, options = CASES[case]
    return tiny_pipes.make(name, scheduler and scheduler(**options))


def steer(case, scorer=red, pipe=None, **options):
    options = {"n": 4, "keep": 4, "lam": 20.0, "progress": False, **options}
    options.setdefault("pipe_kwargs", arguments(CASES[case][0]))
    return steer_particles(pipe or make(case), scorer, **options)


def plain(case, n=4, **options):
    """The same seeds' images without steering, best first."""
    kwargs = arguments(CASES[case][0])
    options = {"keep": n, "batch_size": n, "pipe_kwargs": kwargs, "progress": False, **options}
    return best_of_n(make(case), red, n=n, **options)


def resampled(result):
    return [row.ancestors for row in result.record.rows if row.ancestors is not None]


# --- weights ---------------------------------------------------------------------------------------

weights_of = st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda w: sum(w) > 1e-3)


@settings(max_examples=100, deadline=None)
@given(weights_of, st.floats(0, 1, exclude_max=True))
def test_systematic_draws_each_as_often_as_its_weight_says(values, u):
    weights = torch.tensor(values, dtype=torch.float64) / sum(values)
    n = len(weights)
    index = systematic(weights, torch.tensor([u], dtype=torch.float64))
    counts = torch.bincount(index, minlength=n)
    assert len(index) == n
    assert (counts >= (n * weights - 1e-9).floor()).all()
    assert (counts <= (n * weights + 1e-9).ceil()).all()


@settings(max_examples=30, deadline=None)
@given(weights_of)
def test_systematic_draws_each_n_w_times_on_average(values):
    weights = torch.tensor(values, dtype=torch.float64) / sum(values)
    n, grid = len(weights), 4000
    u = ((torch.arange(grid, dtype=torch.float64) + 0.5) / grid).unsqueeze(1)
    index = systematic(weights.expand(grid, n), u)
    counts = torch.stack([(index == i).sum(1).double().mean() for i in range(n)])
    torch.testing.assert_close(counts, n * weights, rtol=0, atol=2 * n / grid)


def test_effective_sample_size():
    assert float(effective(torch.full((5,), 3.0))) == pytest.approx(1)
    assert float(effective(torch.tensor([0.0, -math.inf, -math.inf, -math.inf]))) == 0.25
    assert float(effective(torch.tensor([0.0, 0.0, -math.inf, -math.inf]))) == 0.5


def chain(groups, n, least, drop=False, potential="difference", steps=6):
    """Steers x0 ~ N(0, 1) on a flow with the exact posterior towards r = tanh(x0).

    Returns each group's estimates: of E[exp(r)], and that times the mean of r under the tilt.
    """
    generator = torch.Generator().manual_seed(1)
    draw = dict(generator=generator, dtype=torch.float64)
    sigmas = torch.linspace(0.98, 0, steps + 1).tolist()
    x = torch.randn(groups, n, **draw) * math.hypot(sigmas[0], 1 - sigmas[0])
    weights = Weights(1.0, potential=potential, unit=1.0)
    for i, (s, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        a, b = 1 - s, 1 - after
        x0 = a * x / (a * a + s * s) + s / math.hypot(a, s) * torch.randn(groups, n, **draw)
        x = b * x0 + after * torch.randn(groups, n, **draw)
        last = i == steps - 1
        rewards = torch.tanh(x if last else b * x / (b * b + after * after))
        weights.update(rewards.unsqueeze(0), final=last)
        if last:
            break
        due = effective(weights.log) < least
        index = weights.resample(torch.rand(groups, 1, **draw), due)
        x = x.gather(1, index)
        if drop:  # what must not be done
            weights.log = weights.log.logsumexp(1, keepdim=True).expand(-1, n) - math.log(n)
    normaliser = weights.log.exp().mean(1)
    return normaliser, normaliser * (weights.normalised() * x.tanh()).sum(1)


@pytest.mark.parametrize("potential", ["difference", "max"])
@pytest.mark.parametrize("least", [2.0, 0.5, 0.0])
def test_the_weights_are_unbiased_on_a_chain_that_is_known(least, potential):
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    wanted = float((density * grid.tanh().exp()).sum())
    tilted = float((density * grid.tanh().exp() * grid.tanh()).sum())
    found, first = chain(20000, 8, least, potential=potential)
    error = float(found.std()) / len(found) ** 0.5
    assert error < 0.004 and abs(float(found.mean()) - wanted) < 4 * error
    assert float(first.mean()) == pytest.approx(tilted, abs=4 * float(first.std()) / 20000**0.5)


def test_dropping_the_weights_of_a_skipped_resampling_would_be_noticed():
    found, first = chain(20000, 8, 0.5, drop=True)
    assert float(first.mean() / found.mean()) < 0.3  # 0.362 with the weights
    assert abs(float(found.mean()) - 1.2077) > 0.1  # the true normaliser


def test_a_groups_own_mean_is_biased_by_less_the_larger_it_is():
    """E[mean over a group] is not that of the tilted distribution; each group must count by its Z."""
    biases = []
    for n in (2, 8, 32):
        found, first = chain(40000 // n, n, 2.0)
        biases.append(float(first.mean() / found.mean() - (first / found).mean()))
    assert biases[0] > 2 * biases[1] > 0 and biases[1] > 2 * biases[2] > -0.01


@pytest.mark.parametrize("least", [1.0, 0.2])
@pytest.mark.parametrize("scheduler", ["DDIM", "Euler ancestral"])
def test_steered_particles_are_the_plain_ones_under_the_tilt(scheduler, least):
    """On the real pipeline, with a denoiser that is exact for x0 ~ N(0, 1), a pixel a latent."""
    n, lam = 1500, 1.0
    case = f"SD 1.5 with {scheduler}"
    named = arguments("SD 1.5", guidance_scale=1.0, height=16, width=16)
    named = {**named, "eta": 1.0} if scheduler == "DDIM" else named

    def gaussian():
        pipe = make(case)

        def eps(x, t, *args, **named):  # of x / sqrt(alpha^2 + sigma^2), which the unet is given
            return (x * (1 - pipe.scheduler.alphas_cumprod[int(t)]).sqrt(),)

        pipe.unet.forward = eps
        grey = 0.3 * pipe.vae.config.scaling_factor  # hardly ever clamped
        pipe.vae.decode = lambda z, **named: (grey * z[:, :3],)
        return pipe

    def reward(images):
        return images[:, 0, 0, 0]

    steered = steer(
        case, reward, gaussian(), n=n, keep=1, lam=lam, ess=least, eta=0.0, pipe_kwargs=named
    )
    plain = best_of_n(
        gaussian(), reward, n=4 * n, batch_size=n, seeds=9000, pipe_kwargs=named, progress=False
    )
    seen = [row.reward for row in steered.record.rows if row.reward is not None]
    unit = max(float(r.std(correction=0)) for r in (*seen, steered.all_scores))
    tilt = (lam * plain.all_scores / unit).softmax(0)
    wanted, found = (
        float(weights @ result.all_scores)
        for weights, result in ((tilt, plain), (steered.weights, steered))
    )
    error = float(plain.all_scores.std()) * (3 / n) ** 0.5  # of n particles that weigh unevenly
    assert abs(found - wanted) < 4 * error < 0.5 * (wanted - float(plain.all_scores.mean()))
    # Resampled each time, or never, the weights carried to the end. (Both in one run: the chain above.)
    assert len(resampled(steered)) == (len(seen) if least == 1 else 0)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1e-6, 1.0, 1e6]), st.floats(-10, 10), st.integers(1, 4))
def test_lam_means_the_same_whatever_the_unit_of_the_scorer(unit, shift, updates):
    tables = torch.randn(updates, 1, 6, generator=torch.Generator().manual_seed(updates)).double()
    here, there = Weights(3.0), Weights(3.0)
    for table in tables:
        here.update(table)
        there.update(unit * (table + shift))
    torch.testing.assert_close(here.normalised(), there.normalised(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_the_factors_telescope_to_the_final_reward(potential):
    weights, tables = Weights(2.0, potential=potential), torch.randn(5, 1, 6)
    for i, table in enumerate(tables):
        weights.update(table, final=i == 4)
    unit = max(float(table.std(correction=0)) for table in tables)
    wanted = (2.0 * tables[-1][0] / unit).softmax(0)
    torch.testing.assert_close(weights.normalised(), wanted, rtol=1e-5, atol=1e-6)


def test_a_particle_without_a_score_dies():
    weights = Weights(1.0)
    weights.update(torch.tensor([[0.0, math.nan, 1.0]]))
    assert weights.normalised()[1] == 0
    weights.update(torch.tensor([[0.0, 5.0, 1.0]]))
    assert weights.normalised()[1] == 0
    assert 1 not in weights.resample(torch.rand(1)).tolist()
    with pytest.raises(ValueError, match="no particle has a score"):
        weights.update(torch.full((1, 3), math.nan))


def test_spread_where_there_is_none():
    assert spread(torch.tensor([[2.0, 2.0], [math.nan, math.nan]])).tolist() == [[0.0], [0.0]]
    weights = Weights(5.0)
    weights.update(torch.full((1, 4), 3.0))
    assert weights.normalised().tolist() == [0.25] * 4


# --- new noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [Level(0.6, 0.8), Level(1.0, 7.0), Level(0.3, 0.7)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_as_much_noise_as_before(level, eta):
    generator = torch.Generator().manual_seed(0)
    x0, eps, new = torch.randn(3, 2, 40000, generator=generator, dtype=torch.float64)
    x = level.alpha * x0 + level.sigma * eps
    moved = renoised(x, x0, level, eta, new)
    noise = (moved - level.alpha * x0) / level.sigma
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    kept = float(torch.corrcoef(torch.stack([noise.flatten(), eps.flatten()]))[0, 1])
    assert kept == pytest.approx(math.sqrt(1 - eta**2), abs=0.02)
    if eta == 0:
        torch.testing.assert_close(moved, x)


# --- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_nothing_resampled_is_the_plain_batch(case):
    alone = plain(case)
    for options in (dict(lam=0.0), dict(ess=0.0), dict(at=())):
        steered = steer(case, **options)
        assert not resampled(steered)
        assert steered.seeds == alone.seeds
        assert torch.equal(steered.latents, alone.latents)
        assert torch.equal(steered.scores, alone.scores)
        assert steered.record.denoiser_calls == alone.record.denoiser_calls


def distances(latents):
    return torch.pdist(latents.float().flatten(1))


@pytest.mark.parametrize("case", DETERMINISTIC)
def test_copies_become_different_images_by_new_noise_alone(case):
    same = steer(case, eta=0.0, ess=1.0, at=[0.3])
    (ancestors,) = resampled(same)
    assert len(set(ancestors)) < 4
    scale = float(same.latents.std())
    assert distances(same.latents).min() < 1e-4 * scale  # a copy is a copy
    other = steer(case, eta=0.8, ess=1.0, at=[0.3])
    assert resampled(other) == [ancestors]
    # Far apart, next to what seeds are: UniPC's corrector, for one, would take most of it back.
    assert distances(other.latents).min() > 0.12 * distances(plain(case).latents).mean()


def test_a_scheduler_that_adds_noise_needs_no_more():
    by_itself = steer(RANDOM, ess=1.0, at=[0.3])
    assert len(set(resampled(by_itself)[0])) < 4
    assert distances(by_itself.latents).min() > 0.1
    assert torch.equal(by_itself.latents, steer(RANDOM, ess=1.0, at=[0.3], eta=0.0).latents)


@pytest.mark.parametrize("case", CASES)
def test_the_same_seeds_make_the_same_images(case):
    first, second, other = (steer(case, seeds=seed) for seed in (3, 3, 20))
    assert resampled(first)
    assert torch.equal(first.latents, second.latents)
    assert resampled(first) == resampled(second) and first.seeds == second.seeds
    assert not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize(
    "case", ["SD 1.5 with DDIM", "SD 1.5 with DPM++", "Flux", "Wan with UniPC"]
)
def test_copies_without_new_noise_are_their_ancestors_plain_images(case):
    """History and all: the ancestor's place among the particles makes no difference to its image."""
    steered, alone = steer(case, eta=0.0, ess=1.0), plain(case)
    wanted = alone.latents[[alone.seeds.index(seed) for seed in steered.seeds]]
    torch.testing.assert_close(steered.latents, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["SD 1.5 with DDIM", RANDOM, "Flux"])
def test_particles_beat_the_plain_batch_at_as_many_calls(case):
    gains, best = [], []
    for seed in (0, 100, 200):
        options = dict(n=8, seeds=seed)
        steered, alone = steer(case, keep=8, lam=8.0, **options), plain(case, **options)
        assert steered.record.denoiser_calls == alone.record.denoiser_calls
        gains.append(float((steered.all_scores.mean() - alone.all_scores.mean()).mean()))
        best.append(float(alone.all_scores.std()))
    assert min(gains) > 0 and sum(gains) > 0.5 * sum(best), (gains, best)


def test_what_is_recorded():
    result = steer("SD 1.5 with DDIM", held_out=Brightness(), keep=2)
    rows = result.record.rows
    assert [row.index for row in rows] == list(range(STEPS))
    weighed = [row for row in rows if row.reward is not None]
    assert [row.index for row in weighed] == [1, 2, 3, 4]
    for row in weighed:
        assert row.reward.shape == row.held_out.shape == (4,)
        assert 0.25 <= row.ess <= 1.0001
        assert (row.ancestors is not None) == (row.ess < 0.5)
    assert result.record.denoiser_calls == 4 * STEPS
    assert result.record.scorer_calls == 2 * (len(weighed) + 1)
    assert len(result.images) == 2 and result.held_out.shape == (2,)
    assert result.weights.shape == (4,) and float(result.weights.sum()) == pytest.approx(1)
    lineage = list(range(4))
    for ancestors in resampled(result):
        lineage = [lineage[i] for i in ancestors]
    assert result.all_seeds == lineage


def test_a_scorer_without_a_gradient_and_several_scorers():
    def blind(images):
        with torch.no_grad():
            return (red(images) * 100).round()

    assert resampled(steer("SD 1.5 with DDIM", blind))
    several = steer("SD 1.5 with DDIM", [(red, 3.0), (Brightness(), 1.0)], ess=1.0)
    assert resampled(several) and several.weights.shape == (4,)
    again = steer(
        "SD 1.5 with DDIM", [(lambda x: 50 * red(x) - 9, 3.0), (Brightness(), 1.0)], ess=1
    )
    assert resampled(several) == resampled(again)


def test_the_best_so_far_as_potential():
    results = [steer("SD 1.5 with DDIM", potential=kind, lam=2.0) for kind in ("max", "difference")]
    assert all(len(result.images) == 4 for result in results)


@pytest.mark.parametrize("case", ["SD 1.5 with DDIM", "Wan with UniPC"])
def test_the_pipeline_is_itself_again_also_after_an_error(case):
    pipe = make(case)
    steer(case, pipe=pipe)
    scheduler, kind, attributes = pipe.scheduler, type(pipe.scheduler), set(vars(pipe))
    calls = []

    def failing(images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("the scorer broke")
        return red(images)

    with pytest.raises(KeyError, match="the scorer broke"):
        steer(case, failing, pipe)
    assert pipe.scheduler is scheduler and type(scheduler) is kind
    assert set(vars(pipe)) == attributes and "_tastemaker_tap" not in vars(scheduler)
    assert torch.equal(steer(case, pipe=pipe).latents, steer(case).latents)


FAMILIES = ("SD 1.5 with DDIM", "SD 1.5 with DPM++", "SDXL", "SD3", "Flux", "Qwen-Image", "Z-Image")


def watch(pipe, most=None):
    """The numbers of rows that the denoiser is given; more than `most` do not fit into memory."""
    (module,), rows = denoisers(pipe), []
    own = module.forward

    def forward(*args, **named):
        latents = args[0] if args else next(iter(named.values()))
        rows.append(len(latents))
        if most is not None and len(latents) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return own(*args, **named)

    module.forward = forward
    return rows


@pytest.mark.parametrize("case", [*FAMILIES, "Wan with UniPC"])
def test_the_denoiser_is_given_as_many_as_it_is_told(case):
    pipe = make(case)
    flag = pipe.vae.use_slicing
    rows = watch(pipe)
    parts = steer(case, pipe=pipe, n=5, keep=5, batch_size=2)
    once = [2, 2, 1]  # with CFG, both of its halves: in one call or in one each
    if sum(rows) == 10 * STEPS and rows[0] == 4:
        once = [4, 4, 2]
    assert rows == once * (len(rows) // 3)
    whole = steer(case, n=5, keep=5)
    assert parts.seeds == whole.seeds and resampled(parts) == resampled(whole) != []
    torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.all_scores, whole.all_scores, rtol=0, atol=1e-5)
    assert parts.record.denoiser_calls == whole.record.denoiser_calls == 5 * STEPS
    assert pipe.vae.use_slicing == flag and "forward" not in vars(make(case).vae)


def test_memory_that_runs_out_halves_what_is_sampled_at_a_time():
    pipe = make("SD 1.5 with DDIM")
    rows = watch(pipe, most=4)  # two particles with CFG
    found = steer("SD 1.5 with DDIM", pipe=pipe, n=6, held_out=Brightness())
    assert rows[:2] == [12, 6] and rows[2] == 2 and set(rows[2:]) == {2}
    whole = steer("SD 1.5 with DDIM", n=6, held_out=Brightness())
    assert found.seeds == whole.seeds and len(found.record.rows) == STEPS
    torch.testing.assert_close(found.latents, whole.latents, rtol=1e-4, atol=1e-4)
    watch(pipe, most=0)
    with pytest.raises(RuntimeError, match="one particle at a time: .*enable_model_cpu_offload"):
        steer("SD 1.5 with DDIM", pipe=pipe)


def test_what_does_not_run_out_of_memory_is_raised_as_it_is():
    def broken(images):
        raise RuntimeError("the scorer broke")

    with pytest.raises(RuntimeError, match="^the scorer broke$"):
        steer("SD 1.5 with DDIM", broken)


# --- the picture -----------------------------------------------------------------------------------

BLUE, ORANGE = (96, 165, 250), (251, 146, 60)


def test_the_picture_shows_the_particles_below_the_rewards():
    record = steer("SD 1.5 with DDIM", n=8, held_out=Brightness()).record
    curves = shares(placed(record)[0])
    assert list(curves) == ["effective sample size", "initial noises left"]
    weighed = [row for row in record.rows if row.ess is not None]
    assert curves["effective sample size"] == [(row.index, row.ess) for row in weighed]
    left = [share for _, share in curves["initial noises left"]]
    assert left == sorted(left, reverse=True) and 0 < left[-1] < 1
    picture = record.plot("particles")
    assert picture.size == (900, 740)
    for box in ((0, 0, 900, 420), (0, 500, 900, 700)):
        colours = {colour for _, colour in picture.crop(box).getcolors(1 << 20)}
        assert {BLUE, ORANGE} <= colours


def test_noises_that_are_left_of_two_runs():
    def row(index, ancestors):
        return Row(index, 1.0, 1.0, torch.zeros(4), ess=0.3, ancestors=ancestors)

    rows = [row(1, [0, 0, 1, 1]), row(3, [0, 1, 0, 1]), row(1, None), row(3, [2, 2, 2, 2])]
    numbered, across = placed(Record(rows))
    assert "several runs" in across
    points = shares(numbered)["initial noises left"]
    assert points == [(0, 0.5), (1, 0.25), (2, 1.0), (3, 0.25)]


def test_an_unknown_scheduler_is_named():
    pipe = tiny_pipes.make("SD 1.5", diffusers.KDPM2DiscreteScheduler(**SD))
    with pytest.raises(NotImplementedError, match="KDPM2DiscreteScheduler is not supported"):
        steer("SD 1.5 with DDIM", pipe=pipe)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(keep=5), "1 <= keep <= n"),
        (dict(seeds=[1]), "1 seeds"),
        (dict(seeds=None), "seeds are a whole number or a list of them: seeds=None"),
        (dict(held_out="nano"), "a scorer is a callable, got str"),
        (dict(lam=-1.0), "lam must not be negative"),
        (dict(eta=1.5), "eta must be in"),
        (dict(ess=2.0), "ess must be in"),
        (dict(at=[1.0]), "at must be shares"),
        (dict(at=0.5), "at must be shares"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(potential="sum"), "potential must be one of difference, max"),
        (dict(pipe_kwargs=dict(latents=torch.zeros(1))), "leave latents to the search"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        steer("SD 1.5 with DDIM", **options)
