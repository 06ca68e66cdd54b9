"""How early previews tell, and the cuts that follow."""

import pytest
import tiny_pipes
import torch
from PIL import Image

from tastemaker.guidance.calibrate import calibrate_pruning, choose_cuts
from tastemaker.guidance.record import Record
from tastemaker.guidance.search import best_of_n
from tastemaker.report.plot import plot


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def measured(noise, steps=10, count=64, seed=0):
    """Scores whose previews are the final ones plus noise that fades over the steps."""
    generator = torch.Generator().manual_seed(seed)
    final = torch.randn(count, generator=generator)
    fade = torch.linspace(1, 0, steps + 1)[:, None] * noise
    return final + fade * torch.randn(steps + 1, count, generator=generator)


RATIOS = torch.linspace(1, 0.1, 10).tolist()


def test_previews_that_tell_all_are_cut_at_once():
    found = choose_cuts([measured(0.0)], RATIOS)
    assert found.correlation == pytest.approx([1.0] * 10)
    assert found.kept == pytest.approx(1.0)
    assert [cut.keep for cut in found.cuts] == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert [cut.after for cut in found.cuts] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found.cost == pytest.approx((16 + 8 + 4 + 2 + 6 * 1) / 160)


def test_the_later_they_tell_the_more_it_costs():
    clear, vague = (choose_cuts([measured(noise)], RATIOS) for noise in (0.2, 1.0))
    assert clear.cost < vague.cost < 1
    assert clear.kept >= 0.97 and vague.kept >= 0.97
    assert clear.correlation[0] > vague.correlation[0]


def test_previews_that_tell_nothing_are_not_cut():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(11, 64, generator=generator)
    found = choose_cuts([noise], RATIOS)
    assert found.cuts == [] and found.cost == 1 and found.kept == 1


def test_asking_for_less_costs_less_and_several_prompts_count_alike():
    table = measured(1.0)
    strict, loose = (choose_cuts([table], RATIOS, keep=k) for k in (0.99, 0.8))
    assert loose.cost < strict.cost
    both = choose_cuts([table, measured(1.0, seed=7) * 100 + 5], RATIOS)
    assert both.kept >= 0.97
    assert choose_cuts([table], RATIOS).cuts == choose_cuts([table], RATIOS).cuts


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_a_budget_is_spent_on_what_keeps_most(noise):
    table = measured(noise)
    little, more = (choose_cuts([table], RATIOS, budget=b) for b in (0.3, 0.6))
    assert 0.2 < little.cost <= 0.3 and little.cost <= more.cost <= 0.6
    assert little.kept <= more.kept
    asked = choose_cuts([table], RATIOS, keep=little.kept)
    assert asked.cost == pytest.approx(little.cost), "nothing cheaper keeps as much"
    assert choose_cuts([table], RATIOS, budget=0.05).cuts == [], "less than any cuts cost"


def test_on_a_pipeline_and_used_there():
    pipe = tiny_pipes.make("SD 1.5")
    kwargs = {key: value for key, value in tiny_pipes.call("SD 1.5").items() if key != "generator"}
    kwargs["num_inference_steps"] = 6
    found = calibrate_pruning(pipe, red, 12, n=8, pipe_kwargs=kwargs, progress=False)
    assert found.after == pytest.approx([i / 6 for i in range(1, 7)])
    assert found.noise_ratios == sorted(found.noise_ratios, reverse=True)
    assert found.correlation[-1] > 0.9 and type(pipe.scheduler).__name__ == "DDIMScheduler"
    options = dict(n=8, batch_size=4, pipe_kwargs=kwargs, progress=False)
    whole, pruned = (best_of_n(pipe, red, prune=p, **options) for p in (None, found.cuts))
    if found.cuts:
        assert pruned.record.denoiser_calls < whole.record.denoiser_calls
        share = pruned.record.denoiser_calls / whole.record.denoiser_calls
        assert share == pytest.approx(found.cost, abs=0.02)
    assert pruned.scores[0] <= whole.scores[0] + 1e-6


def test_several_scorers_rank_all_candidates_not_those_of_a_batch():
    pipe = tiny_pipes.make("SD 1.5")
    kwargs = {key: value for key, value in tiny_pipes.call("SD 1.5").items() if key != "generator"}

    def measured(scorer, batch_size):
        named = dict(n=4, batch_size=batch_size, pipe_kwargs=kwargs, progress=False)
        return calibrate_pruning(pipe, scorer, 6, **named).correlation

    alone = measured(red, 6)
    assert measured([red, red], 1) == pytest.approx(alone, abs=1e-5)
    assert measured([red, red], 4) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    "name, value", [("candidates", 1), ("n", 1), ("keep", 0), ("budget", 1.5), ("batch_size", 0)]
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        calibrate_pruning(tiny_pipes.make("SD 1.5"), red, **{name: value}, pipe_kwargs={})


# --- plots ----------------------------------------------------------------------------------------


def test_a_record_is_plotted():
    from tastemaker.guidance.guide import Guide
    from tastemaker.guidance.rewards import weighted
    from tastemaker.guidance.tap import Step

    guide = Guide(weighted(red), lambda z: z.sigmoid(), window=(0, 1), held_out=red)
    for i in range(4):
        guide(Step(torch.randn(2, 3, 4, 4), 1 - i / 5, 1.0, i, None))
    picture = guide.record.plot("redness")
    assert isinstance(picture, Image.Image) and len(picture.getcolors(2**20)) > 5
    with pytest.raises(ValueError, match="nothing to plot"):
        Record().plot()


@pytest.mark.parametrize("curve", [[(0, 1)], [(0, 1), (1, 1)], [(0, float("nan")), (1, 2)]])
def test_thin_curves_are_plotted(curve):
    flat = plot({"one": curve})
    assert flat.tobytes() != plot({"one": [(0, 3), (1, 5)]}).tobytes()
    assert flat.getpixel((5, 5)) == (24, 24, 27)


def test_scorers_read_the_prompts_of_embeddings():
    asked = []

    def reader(images, prompts=None):
        asked.append((len(images), prompts))
        return red(images)

    kwargs = {key: value for key, value in tiny_pipes.call("SD 1.5").items() if key != "generator"}
    calibrate_pruning(
        *(tiny_pipes.make("SD 1.5"), reader, 2),
        **dict(n=2, prompts="a fox", pipe_kwargs=kwargs, progress=False),
    )
    assert asked and all(given == ["a fox"] * count for count, given in asked)
    with pytest.raises(TypeError, match="pipe is a diffusers pipeline, got str"):
        calibrate_pruning("a/model", reader, pipe_kwargs=kwargs)
