"""Pruning: who is dropped, what it saves, and that the others never notice."""

import math
import threading
import time
from queue import SimpleQueue

import diffusers
import pytest
import tiny_pipes
import torch
from hypothesis import given
from hypothesis import strategies as st
from tqdm.auto import tqdm

from tastemaker.guidance.halving import HALVING, Cut, Lane, check_cuts, halving_cuts, placed
from tastemaker.guidance.search import best_of_n
from tastemaker.guidance.surroundings import Surroundings

PIPES = ("SD 1.5", "SDXL", "SD3", "Flux", "Qwen-Image", "Wan")
CUTS = [(0.3, 0.5), (0.6, 0.25)]
STEPS = 6


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def arguments(name, **more):
    named = {key: value for key, value in tiny_pipes.call(name).items() if key != "generator"}
    return {**named, "num_inference_steps": STEPS, **more}


def search(name, pipe=None, scorer=red, **options):
    pipe = pipe or tiny_pipes.make(name)
    options = {"n": 8, "keep": 2, "batch_size": 8, "prune": CUTS, "progress": False, **options}
    options.setdefault("pipe_kwargs", arguments(name))
    return best_of_n(pipe, scorer, **options)


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("batch_size", [8, 3])
def test_survivors_equal_a_run_of_their_own(name, batch_size):
    result = search(name, batch_size=batch_size)
    assert [len(alive) for alive in result.record.survivors] == [4, 2]
    alone = search(name, n=2, keep=2, seeds=sorted(result.seeds), prune=None, batch_size=1)
    order = [alone.seeds.index(seed) for seed in result.seeds]
    torch.testing.assert_close(result.latents, alone.latents[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.scores, alone.scores[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_the_held_out_scorer_is_recorded_at_every_cut_and_has_no_say(batch_size):
    plain = search("SD 1.5", batch_size=batch_size)
    watched = search("SD 1.5", batch_size=batch_size, held_out=lambda x: 1 - 2 * red(x))
    assert watched.record.survivors == plain.record.survivors and watched.seeds == plain.seeds
    assert [row.held_out for row in plain.record.rows] == [None] * 3
    rows = watched.record.rows
    assert [len(row.held_out) for row in rows] == [8, 4, 2]
    for row, other in zip(rows, plain.record.rows, strict=True):
        assert torch.equal(row.reward, other.reward)
        torch.testing.assert_close(row.held_out, 1 - 2 * row.reward)
    assert watched.record.scorer_calls == 2 * plain.record.scorer_calls
    assert watched.record.plot().size == plain.record.plot().size


SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, dict(clip_sample=False)),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "DPM++": (diffusers.DPMSolverMultistepScheduler, {}),
    "DPM++ SDE": (diffusers.DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++")),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_histories_and_noise_go_on_with_the_survivors(scheduler):
    kind, options = SCHEDULERS[scheduler]

    def pipe():
        return tiny_pipes.make("SD 1.5", kind(**tiny_pipes.SD_SCHEDULE, **options))

    result = search("SD 1.5", pipe())
    alone = search("SD 1.5", pipe(), n=2, seeds=sorted(result.seeds), prune=None, batch_size=1)
    order = [alone.seeds.index(seed) for seed in result.seeds]
    torch.testing.assert_close(result.latents, alone.latents[order], rtol=1e-4, atol=1e-4)


def test_it_saves_the_steps_of_the_dropped():
    pipe, seen = tiny_pipes.make("SD 1.5"), []
    own = pipe.unet.forward

    def counted(latents, *args, **named):
        seen.append(len(latents) // 2)  # CFG
        return own(latents, *args, **named)

    pipe.unet.forward = counted
    result = search("SD 1.5", pipe)
    assert seen == [8, 8, 4, 4, 2, 2]
    assert result.record.denoiser_calls == sum(seen)


def test_batches_are_compared_with_one_another():
    """All of the best may lie in one batch: the others then end altogether."""
    whole, parts = (search("SD 1.5", batch_size=b) for b in (8, 2))
    assert whole.seeds == parts.seeds
    assert [sorted(a) for a in whole.record.survivors] == [
        sorted(a) for a in parts.record.survivors
    ]
    assert threading.active_count() == 1 or not [
        t for t in threading.enumerate() if type(t).__name__ == "Lane"
    ]


def bright(images):
    return 1000 * images.mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [3, 1])
def test_several_scorers_rank_all_candidates_not_those_of_a_batch(batch_size):
    pair = [(red, 3.0), (bright, 1.0)]
    whole, parts = (search("SD 1.5", scorer=pair, batch_size=b) for b in (8, batch_size))
    assert whole.seeds == parts.seeds
    assert whole.record.survivors == parts.record.survivors
    # Eight at once: half of them, by both rankings, and not the first four.
    assert whole.record.survivors[0] != [0, 1, 2, 3]


def test_progress_moves_with_every_cut(monkeypatch):
    shown = []

    class Bar(tqdm):
        def update(self, n=1):
            shown.append((n, self.total))
            return super().update(n)

    monkeypatch.setattr("tastemaker.guidance.search.tqdm", Bar)
    search("SD 1.5", progress=True)
    assert shown == [(4, 8), (2, 8), (2, 8)]  # dropped at either cut, finished


def test_the_dropped_have_no_score_and_the_kept_are_the_best_of_the_rest():
    result = search("SD 1.5")
    alive = result.record.survivors[-1]
    scored = (~result.all_scores.isnan()).nonzero().flatten().tolist()
    assert sorted(alive) == scored
    assert sorted(result.seeds) == sorted(alive)


def test_the_picture_shows_who_is_left():
    record = search("SD 1.5", batch_size=3).record
    assert [(row.index, row.left, len(row.reward)) for row in record.rows] == [
        (1, 0.5, 8),
        (3, 0.25, 4),
        (STEPS, None, 2),  # finished
    ]
    picture = record.plot("pruned")
    assert picture.size == (900, 740)
    assert (96, 165, 250) in {c for _, c in picture.crop((0, 500, 900, 700)).getcolors(1 << 20)}


def test_a_good_preview_finds_the_same_best():
    whole = search("SD 1.5", n=8, keep=1, prune=None)
    pruned = search("SD 1.5", n=8, keep=1, prune=[(0.7, 0.5)])
    assert pruned.seeds == whole.seeds
    assert pruned.record.denoiser_calls < whole.record.denoiser_calls


def test_never_fewer_than_are_kept():
    kwargs = arguments("SD 1.5", num_inference_steps=10)  # one for each cut
    result = search("SD 1.5", n=4, keep=3, prune=HALVING, pipe_kwargs=kwargs)
    assert [len(alive) for alive in result.record.survivors] == [3] * len(HALVING)
    assert len(result.images) == 3


def test_batches_show_no_bars_of_their_own(capsys):
    pipe = tiny_pipes.make("SD 1.5")
    pipe.set_progress_bar_config(disable=False)
    capsys.readouterr()
    search("SD 1.5", pipe=pipe, n=4, batch_size=2, keep=1, prune=CUTS)
    assert "%|" not in capsys.readouterr().err
    search("SD 1.5", pipe=pipe, n=1, keep=1, prune=None)
    assert "%|" in capsys.readouterr().err, "the pipeline's own bar is as it was"


@pytest.mark.parametrize(
    "n, keep, left", [(16, 1, [8, 4, 2, 1]), (16, 4, [8, 4]), (16, 3, [8, 3]), (4, 1, [2, 1])]
)
def test_halving_lets_twice_as_many_as_are_kept_go_on(n, keep, left):
    cuts = check_cuts(halving_cuts(n, keep))
    assert [math.ceil(cut.keep * n) for cut in cuts] == left
    assert cuts[-1].after == HALVING[-1].after
    assert halving_cuts(keep, keep) == []


@given(st.integers(1, 200), st.data())
def test_halving_of_any_number_is_sound(n, data):
    keep = data.draw(st.integers(1, n))
    cuts = check_cuts(halving_cuts(n, keep))
    assert bool(cuts) == (keep < n)
    assert all(math.ceil(cut.keep * n) >= keep for cut in cuts)


def test_the_pipeline_is_itself_again_also_after_an_error():
    pipe = tiny_pipes.make("SD 1.5")
    scheduler, attributes = pipe.scheduler, set(vars(pipe))
    calls = []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyError("the scorer broke")
        return red(images)

    with pytest.raises(KeyError, match="the scorer broke"):
        search("SD 1.5", pipe, failing, batch_size=3)
    assert pipe.scheduler is scheduler and set(vars(pipe)) == attributes
    assert not pipe.unet._forward_pre_hooks
    assert not [t for t in threading.enumerate() if type(t).__name__ == "Lane"]
    search("SD 1.5", pipe)


def lanes():
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "Lane"]


@pytest.mark.parametrize(
    "prune", [[(0.9, 0.5)], [(0.2, 0.5)]]
)  # before the cut; after the last one
def test_an_interrupt_stops_the_batch_at_its_next_step(prune, monkeypatch):
    """The caller is interrupted while it waits for a batch, as by Ctrl-C."""
    begun, asked, steps = threading.Event(), threading.Event(), []
    own = Lane.stop

    def stop(lane):
        lane.stopped = True  # as the first thing that it does
        asked.set()
        own(lane)

    def step(pipe, i, t, kwargs):
        steps.append(i)
        if i == 4:
            begun.set()
            assert asked.wait(10)
        return kwargs

    class Reports(SimpleQueue):
        def get(self):
            while self.empty():
                if begun.is_set():
                    raise KeyboardInterrupt
                time.sleep(0.001)
            return super().get()

    monkeypatch.setattr(Lane, "stop", stop)
    monkeypatch.setattr("tastemaker.guidance.halving.SimpleQueue", Reports)
    kwargs = arguments("SD 1.5", num_inference_steps=20, callback_on_step_end=step)
    with pytest.raises(KeyboardInterrupt):
        search("SD 1.5", n=2, keep=2, batch_size=2, prune=prune, pipe_kwargs=kwargs)
    assert max(steps) == 4 and not lanes()


def test_an_interrupted_pipeline_is_named():
    def interrupt(pipe, i, t, kwargs):
        pipe._interrupt = i == 1
        return kwargs

    pipe = tiny_pipes.make("SD 1.5")
    for of in (lambda own: own, lambda own: pipe):  # the run's pipeline, and the caller's

        def step(own, i, t, kwargs, of=of):
            return interrupt(of(own), i, t, kwargs)

        with pytest.raises(RuntimeError, match="the pipeline was interrupted"):
            search("SD 1.5", pipe, pipe_kwargs=arguments("SD 1.5", callback_on_step_end=step), n=4)
        assert not lanes()
    assert len(search("SD 1.5", pipe, n=4).images) == 2  # an interrupt is that of one run


def test_a_batch_computes_as_its_caller_would():
    """Autocast is a thread's own."""
    kwargs = dict(n=2, keep=2, batch_size=2, prune=[(0.9, 0.9)])
    plain = search("SD 1.5", **kwargs)
    with torch.autocast("cpu", torch.bfloat16):
        whole, pruned = (search("SD 1.5", **{**kwargs, "prune": p}) for p in (None, [(0.9, 0.9)]))
    assert whole.seeds == pruned.seeds and torch.equal(whole.latents, pruned.latents)
    assert not torch.equal(plain.latents, pruned.latents)


def test_what_a_thread_has_of_its_own_is_taken_along():
    surroundings = []
    with torch.device("meta"), torch.autocast("cpu", torch.float16, cache_enabled=False):
        here = Surroundings()

    def there():
        with here.entered():
            surroundings.append(Surroundings())
        surroundings.append(Surroundings())

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    assert vars(surroundings[0]) == vars(here) and here.dtypes == {"cpu": torch.float16}
    assert vars(surroundings[1]) == vars(Surroundings())


def test_no_preview_with_a_score_is_named():
    calls = []

    def later(images):  # all but the first cut's
        calls.append(1)
        return red(images) * (torch.nan if len(calls) == 1 else 1)

    with pytest.raises(ValueError, match="none of 8 candidates has a score"):
        search("SD 1.5", scorer=later)
    assert not lanes()


@pytest.mark.parametrize(
    "steps, wanted",
    [
        (1, {}),
        (2, {0: 1 / 16}),
        (4, {0: 1 / 8, 1: 1 / 16}),
        (10, {0: 1 / 2, 1: 1 / 4, 2: 1 / 8, 3: 1 / 16}),
    ],
)
def test_cuts_that_fall_on_one_step_are_one(steps, wanted):
    assert {index: cut.keep for index, cut in placed(HALVING, steps).items()} == wanted
    assert placed([Cut(0.5, 0.5), Cut(0.99, 0.2)], steps=10) == {4: Cut(0.5, 0.5)}


@pytest.mark.parametrize("steps, left, calls", [(4, [2, 1], 16 + 2 + 2), (1, [], 16)])
def test_few_steps_have_few_cuts(steps, left, calls):
    scored = []

    def scorer(images):
        scored.append(len(images))
        return red(images)

    kwargs = arguments("SD 1.5", num_inference_steps=steps)
    with pytest.warns(UserWarning, match=f"4 cuts do not fit into {steps} steps") as told:
        result = search(
            *("SD 1.5",),
            scorer=scorer,
            n=16,
            keep=1,
            batch_size=16,
            prune="halving",
            pipe_kwargs=kwargs,
        )
    assert len([w for w in told if "cuts" in str(w.message)]) == 1
    assert [len(alive) for alive in result.record.survivors] == left
    assert scored[0] == 16 and len(scored) == len(left) + 1
    assert result.record.denoiser_calls == calls


def test_what_cannot_be_pruned_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="ZImagePipeline with CFG .*guidance_scale=0"):
        search("Z-Image")
    result = search("Z-Image", pipe_kwargs=arguments("Z-Image", guidance_scale=0.0))
    assert len(result.images) == 2
    pipe = tiny_pipes.make("SD 1.5", diffusers.KDPM2DiscreteScheduler(**tiny_pipes.SD_SCHEDULE))
    with pytest.raises(NotImplementedError, match="KDPM2DiscreteScheduler is not supported"):
        search("SD 1.5", pipe)


@pytest.mark.parametrize(
    "cuts", [[(0.0, 0.5)], [(0.5, 1.0)], [(0.5, 0.5), (0.4, 0.2)], [(0.2, 0.2), (0.4, 0.5)]]
)
def test_bad_cuts_are_refused(cuts):
    with pytest.raises(ValueError, match="cuts are"):
        check_cuts(cuts)
    assert check_cuts([(0.2, 0.5)]) == [Cut(0.2, 0.5)]
