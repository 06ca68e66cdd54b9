"""The tap on diffusers' own schedulers: what it sees is x0, and what it returns is what is stepped with."""

import copy
import functools
import inspect
import warnings

import diffusers
import pytest
import torch

from tastemaker.guidance import tap
from tastemaker.guidance.schedulers import LEVELS, level, prediction, x0_coefficients

VP = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDIM = dict(**VP, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
CASES = {
    **{
        f"{name} {kind}": (name, dict(VP, prediction_type=kind))
        for name in (
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "HeunDiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
        )
        for kind in ("epsilon", "v_prediction")
    },
    **{
        f"{name} {kind}": (name, dict(VP, clip_sample=False, prediction_type=kind))
        for name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler")
        for kind in ("epsilon", "v_prediction", "sample")
    },
    "DPM++ SDE": (
        "DPMSolverMultistepScheduler",
        dict(VP, algorithm_type="sde-dpmsolver++", prediction_type="epsilon"),
    ),
    "DPM++ Karras": (
        "DPMSolverMultistepScheduler",
        dict(VP, use_karras_sigmas=True, prediction_type="epsilon"),
    ),
    "DPM++ flow": ("DPMSolverMultistepScheduler", FLOW),
    "UniPC flow": ("UniPCMultistepScheduler", FLOW),
    "FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", dict(shift=3.0)),
    "FlowMatchHeun": ("FlowMatchHeunDiscreteScheduler", dict(shift=3.0)),
}


def make(name, steps=8):
    kind, options = CASES[name]
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


class Model:
    """A denoiser that knows x0: whatever the sample, its output stands for `clean` plus a wrinkle."""

    def __init__(self, clean, wrinkle=0.0):
        self.clean, self.wrinkle = clean, wrinkle

    def __call__(self, scheduler, x, t):
        a, b = x0_coefficients(level(scheduler, t), prediction(scheduler))
        return (self.clean + self.wrinkle * torch.tanh(x) - a * x) / b


def sample(scheduler, model, seed=0, shape=(2, 4, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1))
    x = x.to(dtype)
    more = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        more["generator"] = generator
    for t in scheduler.timesteps:
        scheduler_input = x
        x = scheduler.step(model(scheduler, scheduler_input, t).to(dtype), t, x, **more).prev_sample
    return x


def wavy(scheduler, x, t):
    """A denoiser that is no oracle."""
    return torch.sin(x.float() * 0.7) * 0.9


def test_every_supported_scheduler_is_tested():
    assert {kind for kind, _ in CASES.values()} == set(LEVELS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_looking_changes_nothing(name, dtype):
    plain = sample(make(name), wavy, dtype=dtype)
    seen = []
    scheduler = make(name)
    with tap(scheduler, lambda step: seen.append(step)):
        assert torch.equal(sample(scheduler, wavy, dtype=dtype), plain)
    assert len(seen) == len(scheduler.timesteps)
    assert [step.index for step in seen] == list(range(len(seen)))
    assert all(step.x0.dtype == torch.float32 for step in seen)
    ratios = [step.noise_ratio for step in seen]
    assert all(0 <= r <= 1 for r in ratios) and ratios == sorted(ratios, reverse=True)


# DEIS keeps eps, LCM returns its consistency model's x0, and the flow-matching ones say nothing of it:
# the tests below show theirs.
TELLING = [n for n in CASES if CASES[n][0][:4] not in ("DEIS", "LCMS", "Flow")]


@pytest.mark.parametrize("name", TELLING)
def test_what_is_seen_is_the_schedulers_own_x0(name):
    scheduler, theirs, ours = make(name), [], []
    own = type(scheduler)

    class Spy(own):
        @functools.wraps(own.step)
        def step(self, *args, **named):
            result = super().step(*args, **named)
            known = getattr(result, "pred_original_sample", None)
            # The multistep ones keep x0 for their next step.
            theirs.append(self.model_outputs[-1] if known is None else known)
            return result

    Spy.__name__ = own.__name__
    scheduler.__class__ = Spy
    with tap(scheduler, lambda step: ours.append(step.x0)):
        sample(scheduler, wavy)
    for seen, known in zip(ours, theirs, strict=True):
        torch.testing.assert_close(seen, known.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_x0_that_is_asked_for_is_where_sampling_ends(name):
    """An oracle in the tap: whatever the model says, sampling ends at the x0 that it was given."""
    wanted = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    scheduler, last = make(name), []
    with tap(scheduler, lambda step: last.append(step) or wanted):
        end = sample(scheduler, wavy)
    # Where the last step does not go down to no noise, what is left of it is known.
    remains = {"DDIMScheduler": 0.03, "LCMScheduler": 0.03, "DEISMultistepScheduler": 0.04}
    tolerance = remains.get(type(scheduler).__name__, 2e-5)
    assert (end - wanted).square().mean().sqrt() < tolerance


@pytest.mark.parametrize("name", CASES)
def test_stepping_with_another_x0_is_what_a_model_with_that_x0_would_do(name):
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    moved = clean + 0.3
    expected = sample(make(name), Model(moved, 0.1))
    scheduler = make(name)
    with tap(scheduler, lambda step: step.x0 + 0.3):
        torch.testing.assert_close(
            sample(scheduler, Model(clean, 0.1)), expected, rtol=1e-4, atol=1e-4
        )


def test_the_scheduler_is_itself_again_afterwards_also_after_an_error():
    scheduler = make("FlowMatchEuler")
    own, signature = type(scheduler), inspect.signature(scheduler.step)
    with pytest.raises(KeyError), tap(scheduler, lambda step: None):
        assert isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        assert type(scheduler).__name__ == own.__name__
        assert inspect.signature(scheduler.step) == signature
        raise KeyError
    assert type(scheduler) is own
    assert not [key for key in vars(scheduler) if "tastemaker" in key]


def test_a_copy_is_not_tapped_and_leaves_the_original_alone():
    scheduler, seen = make("FlowMatchEuler"), []
    with tap(scheduler, seen.append):
        other = copy.deepcopy(scheduler)
        sample(other, wavy)
        assert not seen and scheduler.step_index is None
        sample(scheduler, wavy)
    assert len(seen) == 8


def test_one_tap_at_a_time():
    scheduler = make("FlowMatchEuler")
    with tap(scheduler, lambda step: None):
        with pytest.raises(RuntimeError, match="tapped already"):
            with tap(scheduler, lambda step: None):
                pass
        with pytest.raises(ValueError, match=r"returned \[1\] for an x0 of \[2, 4, 8, 8\]"):
            scheduler._tastemaker_tap.function = lambda step: torch.zeros(1)
            sample(scheduler, wavy)


UNKNOWN = {
    "KDPM2DiscreteScheduler": "EulerDiscreteScheduler",
    "EDMEulerScheduler": "EulerDiscreteScheduler",
    "PNDMScheduler": "DDIMScheduler",
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_scheduler_is_refused_with_the_line_that_helps(kind):
    scheduler = getattr(diffusers, kind)()
    with pytest.raises(NotImplementedError, match=f"{kind} is not supported: ") as told:
        with tap(scheduler, lambda step: None):
            pass
    assert type(scheduler).__name__ == kind
    line = f"pipe.scheduler = {UNKNOWN[kind]}.from_config(pipe.scheduler.config)"
    assert line in str(told.value)


def test_the_line_for_stable_diffusions_own_scheduler_works():
    """As its folders on the hub have it: PNDM."""
    folder = dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    pndm = diffusers.PNDMScheduler.from_config(dict(VP, **folder))
    scheduler = diffusers.DDIMScheduler.from_config(pndm.config)
    scheduler.set_timesteps(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tap(scheduler, lambda step: None):
            sample(scheduler, wavy)


def test_noise_that_no_seed_reaches_is_warned_about():
    scheduler = make("DPM++ SDE")
    x = torch.zeros(1, 4, 8, 8)
    with tap(scheduler, lambda step: None):
        with pytest.warns(UserWarning, match="generator to DPMSolverMultistep.*torch.manual_seed"):
            scheduler.step(x, scheduler.timesteps[0], x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step(x, scheduler.timesteps[1], x, generator=torch.Generator())


def test_a_scheduler_that_clips_is_warned_about():
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    with pytest.warns(UserWarning, match="DDIMScheduler clips x0"), tap(scheduler, lambda s: None):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tap(make("DDIMScheduler epsilon"), lambda step: None):
            pass


SOLVERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", VP),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", dict(VP, use_karras_sigmas=True)),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", dict(VP, solver_order=3)),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", dict(VP, algorithm_type="sde-dpmsolver++")),
    "DPM++ 2M flow": ("DPMSolverMultistepScheduler", FLOW),
    "UniPC": ("UniPCMultistepScheduler", VP),
    "UniPC flow": ("UniPCMultistepScheduler", FLOW),
}


def way(name, push, steps=6, at=2):
    """The samples of a run whose x0 is pushed in one step, where the model's x0 never changes."""
    kind, options = SOLVERS[name]
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(steps)
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(0)
    x, xs, levels = torch.randn(2, 4, 8, 8, generator=generator), [], []
    named = {"generator": generator} if "DPM" in kind else {}
    model = Model(clean)
    with tap(scheduler, lambda step: step.x0 + push if step.index == at else None):
        for t in scheduler.timesteps:
            levels.append(level(scheduler, t))
            x = scheduler.step(model(scheduler, x, t), t, x, **named).prev_sample
            xs.append(x)
    return xs, levels


@pytest.mark.parametrize("name", SOLVERS)
def test_a_multistep_solver_neither_overshoots_a_push_nor_takes_it_back(name):
    """A push moves its step as one of first order does; from there on only the noise that it has
    become goes away, with all the other noise."""
    (plain, levels), (pushed, _) = way(name, 0.0), way(name, 1.0)
    moved = [float((b - a).mean()) for a, b in zip(plain, pushed, strict=True)]
    assert moved[:2] == pytest.approx([0, 0], abs=1e-6)
    here, after = levels[2], levels[3]
    if "SDE" in name:
        share = after.alpha * (1 - (after.sigma * here.alpha / (after.alpha * here.sigma)) ** 2)
    else:
        share = after.alpha - after.sigma * here.alpha / here.sigma
    assert share > 0.05 and moved[2] == pytest.approx(share, rel=1e-4)
    for i in (3, 4):
        now, then = levels[i], levels[i + 1]
        fade = then.sigma / now.sigma
        if "SDE" in name:
            fade *= fade * now.alpha / then.alpha
        share *= fade
        assert moved[i] == pytest.approx(share, rel=1e-3)
