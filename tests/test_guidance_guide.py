"""The push: its size, its direction, when there is none, and what is recorded of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub import Brightness

from tastemaker.guidance.guide import Guide, low_passed, rms
from tastemaker.guidance.record import summary
from tastemaker.guidance.rewards import ascent, rate, weighted
from tastemaker.guidance.tap import Step

D = 4 * 6 * 6


def decode(x0):
    """Latents [B, 4, h, w] to pixels: smooth, and each sample by itself."""
    return torch.sigmoid(x0[:, :3] + 0.3 * x0[:, 3:])


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def dark(images):
    return -images.mean((1, 2, 3))


def step(x0, noise_ratio=0.8, index=0):
    return Step(x0, noise_ratio, 1.0, index, torch.tensor(500))


def latents(count=3, seed=0):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def guide(scorers=red, **options):
    return Guide(weighted(scorers), decode, **options)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.01, 0.2),
    noise_ratio=st.floats(0.5, 1.0),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    shift=st.floats(-100, 100),
)
def test_the_push_is_of_the_stated_size_whatever_the_rewards_unit(scale, noise_ratio, unit, shift):
    x0 = latents()
    moved = guide(lambda x: unit * red(x) + shift, scale=scale)(step(x0, noise_ratio))
    torch.testing.assert_close(
        rms(moved - x0), torch.full((3,), scale * noise_ratio), rtol=1e-3, atol=0
    )
    assert (red(decode(moved)) > red(decode(x0))).all()


def test_each_sample_by_itself():
    x0 = latents(4)
    together = guide()(step(x0))
    for i in range(4):
        alone = guide()(step(x0[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale, noise_ratio", [(0.0, 0.8), (0.1, 0.49), (0.1, 0.0)])
def test_no_push_at_scale_0_or_outside_the_window(scale, noise_ratio):
    def never(images):
        raise AssertionError("the scorer was asked")

    guided = guide(never, scale=scale)
    assert guided(step(latents(), noise_ratio)) is None
    assert len(guided.record.rows) == 1 and guided.record.rows[0].reward is None
    assert guided.record.denoiser_calls == 3 and guided.record.scorer_calls == 0


def test_the_cap_bounds_the_push():
    x0 = latents()
    moved = guide(scale=5.0, cap=0.2)(step(x0, 1.0))
    torch.testing.assert_close(rms(moved - x0), torch.full((3,), 0.2))


def test_a_saturated_reward_no_longer_pushes():
    """A unit-norm push never ends by itself: as the gradient dies away, so must the push."""
    fading = guide(lambda x: fading.strength * red(x), scale=0.1, window=(0, 1))
    sizes = []
    for i, fading.strength in enumerate([1.0, 1.0, 1.0, 1e-2, 1e-4, 1e-6]):
        x0 = latents()
        sizes.append(float(rms(fading(step(x0, 0.8, i)) - x0).mean()))
    assert sizes[:3] == pytest.approx([0.08] * 3, rel=1e-3)
    assert sizes[3] < 0.01 and sizes[5] < 1e-5


def test_samples_that_reached_the_target_are_left_alone():
    x0 = latents(4)
    known = red(decode(x0))
    target = float(known.sort().values[1:3].mean())
    moved = guide(target=target)(step(x0))
    assert ((moved != x0).flatten(1).any(1) == (known < target)).all()


def test_several_scorers_count_by_their_weights_whatever_their_units():
    x0 = latents()
    same = guide([(red, 3.0), (dark, 1.0)])(step(x0))
    other = guide([(lambda x: 1000 * red(x), 0.75), (dark, 0.25)])(step(x0))
    torch.testing.assert_close(same, other, rtol=1e-4, atol=1e-5)
    only = guide([(red, 1.0), (dark, 0.0)])(step(x0))
    torch.testing.assert_close(only, guide(red)(step(x0)))


def test_a_held_out_scorer_that_agrees_opens_no_gap():
    guided = guide(red, held_out=lambda x: 5 * red(x))
    x0 = latents()
    for i in range(4):
        x0 = guided(step(x0, 0.9, i))
    row = guided.record.rows[-1]
    assert row.gain > 0 and row.held_out_gain == pytest.approx(5 * row.gain, rel=1e-3)
    assert not guided.record.gap
    torch.testing.assert_close(row.held_out, 5 * row.reward)


def test_reward_hacking_is_reported_and_stops_the_guidance_on_request(caplog):
    for stop in (False, True):
        guided = guide(red, held_out=lambda x: -red(x), stop_on_gap=stop)
        assert guided(step(latents())) is not None
        assert guided.record.gap and "reward hacking" in caplog.text
        assert (guided(step(latents(), index=1)) is None) == stop
        guided.start()
        assert guided(step(latents())) is not None  # the next run is guided again


def test_a_gap_stops_its_own_run_only(caplog):
    """In the second run the held-out scorer agrees: it is guided to the end, as if it were the first."""
    guided = guide(red, held_out=lambda x: guided.agrees * red(x), stop_on_gap=True)
    steps = []
    for guided.agrees in (-1.0, 1.0, -1.0):
        guided.start()
        steps.append([guided(step(latents(), index=i)) is not None for i in range(7)])
    assert steps == [[True] + [False] * 6, [True] * 7, [True] + [False] * 6]
    assert guided.record.gap and guided.record.stopped
    assert caplog.text.count("reward hacking") == 2


def test_the_record_keeps_a_gap_and_a_stop_when_another_run_has_none():
    guided = guide(red, held_out=lambda x: guided.agrees * red(x), stop_on_gap=True)
    for guided.agrees in (-1.0, 1.0):
        guided.start()
        guided(step(latents()))
    assert guided.record.gap and guided.record.stopped
    never = guide(red, held_out=lambda x: -red(x))
    never(step(latents()))
    assert never.record.gap and not never.record.stopped


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
@pytest.mark.parametrize("who", ["guiding", "held out"])
def test_a_sample_without_a_number_does_not_hide_the_hacking_of_the_others(who, lost, caplog):
    """The gains are those of the same samples without it."""
    broken = torch.tensor([1.0, lost, 1.0])
    own, other = (broken, 1.0) if who == "guiding" else (1.0, broken)
    guided = guide(lambda x: own * red(x), held_out=lambda x: -other * red(x), stop_on_gap=True)
    without = guide(red, held_out=lambda x: -red(x), stop_on_gap=True)
    x0 = latents()
    assert guided(step(x0)) is not None
    without(step(x0[[0, 2]]))
    row, wanted = guided.record.rows[0], without.record.rows[0]
    assert row.gain == pytest.approx(wanted.gain, rel=1e-4)
    assert row.held_out_gain == pytest.approx(wanted.held_out_gain, rel=1e-4)
    assert guided.record.gap and guided.record.stopped
    what = "reward" if who == "guiding" else "held-out reward"
    assert f"1 of 3 samples have no finite {what} at step 0" in caplog.text


def test_a_step_whose_samples_have_no_number_changes_no_gain():
    guided = guide(red, held_out=lambda x: guided.held * red(x))
    for guided.held in (1.0, torch.nan, 1.0):
        guided(step(latents()))
    gains = [(row.gain, row.held_out_gain) for row in guided.record.rows]
    assert gains[1] == (None, None)
    assert gains[2] == pytest.approx([2 * gain for gain in gains[0]], rel=1e-4)
    assert not guided.record.gap


def test_a_summary_leaves_out_what_has_no_number():
    half = torch.tensor([1.0, torch.nan])
    guided = guide(lambda x: half * red(x), held_out=lambda x: guided.held * red(x))
    for guided.held in (1.0, torch.nan):
        guided(step(latents(2)))
    said = summary(guided.record)
    assert "nan" not in said and "The pushes added +" in said


def test_a_scorer_without_a_gradient_is_refused_by_name():
    def blind(images):
        return red(images.detach())

    with pytest.raises(
        TypeError, match="blind gives no gradient: use best_of_n or steer_particles"
    ):
        guide(blind)(step(latents()))


def test_a_gradient_that_is_not_finite_leaves_its_sample_alone():
    def broken(images):
        return red(images) * torch.tensor([1.0, torch.inf, 1.0])

    x0 = latents()
    moved = guide(broken)(step(x0))
    assert ((moved - x0).flatten(1).abs().sum(1) > 0).tolist() == [True, False, True]


def test_rewards_that_are_no_numbers_are_told_once_a_run(caplog):
    def broken(images):
        return red(images) * torch.tensor([1.0, torch.nan, 1.0])

    one = guide(broken)
    for run in range(2):
        one.start()
        for i in range(3):
            one(step(latents(), index=i))
        assert caplog.text.count("1 of 3 samples have no finite reward at step 0") == run + 1


def test_under_inference_mode_too():
    with torch.inference_mode():
        moved = guide()(step(latents()))
    torch.testing.assert_close(moved, guide()(step(latents())))


def test_low_pass_keeps_the_size_and_removes_the_grain():
    x0 = latents()
    plain, smooth = (guide(low_pass=k)(step(x0)) - x0 for k in (0, 5))
    torch.testing.assert_close(rms(plain), rms(smooth))
    assert smooth.diff(dim=-1).abs().mean() < 0.5 * plain.diff(dim=-1).abs().mean()
    constant = torch.ones(2, 3, 5, 7)
    torch.testing.assert_close(low_passed(constant, 4), constant)
    assert low_passed(torch.randn(2, 3, 4, 5, 7), 3).shape == (2, 3, 4, 5, 7)
    with pytest.raises(ValueError, match="needs latents"):
        low_passed(torch.randn(2, 16, 64), 3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(window=(0.9, 0.1)), "window"),
        (dict(scale=-1.0), "scale must not be negative"),
        (dict(scale=float("nan")), "scale"),
        (dict(held_out="nano"), "a scorer is a callable, got str"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        guide(**options)


def test_the_direction_is_that_of_the_numerical_gradient():
    x0 = latents(2).double()
    rewards, direction, _ = ascent(weighted(red), x0, decode)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(2).double())
    slope = torch.zeros_like(x0)
    for index in torch.cartesian_prod(*map(torch.arange, x0.shape)).tolist():
        nudge = torch.zeros_like(x0)
        nudge[tuple(index)] = 1e-6
        difference = red(decode(x0 + nudge)) - red(decode(x0 - nudge))
        slope[tuple(index)] = difference[index[0]]
    cosine = torch.cosine_similarity(slope.flatten(1), direction.flatten(1))
    assert (cosine > 0.9999).all()
    torch.testing.assert_close(rewards[0].double(), red(decode(x0)), rtol=1e-6, atol=1e-6)


# --- what a scorer is -----------------------------------------------------------------------------


def test_prompts_go_to_who_reads_them():
    heard = []

    def reader(images, prompts=None):
        heard.append(prompts)
        return red(images)

    rate(reader, torch.rand(2, 3, 8, 8), ["a", "b"])
    rate(red, torch.rand(2, 3, 8, 8), ["a", "b"])
    rate(Brightness(), torch.rand(2, 3, 8, 8), ["a", "b"])
    assert heard == [["a", "b"]]


def test_a_scorer_that_gives_something_else_is_named():
    def mean(images):
        return images.mean()

    with pytest.raises(ValueError, match=r"mean must give a Tensor\[2\], got \[\]"):
        rate(mean, torch.rand(2, 3, 8, 8))
    with pytest.raises(TypeError, match="a scorer is a callable, got str"):
        weighted("nano")
    for weights in ([(red, 0.0)], [(red, -1.0), (dark, 2.0)], []):
        with pytest.raises(ValueError, match="weights must be positive"):
            weighted(weights)
