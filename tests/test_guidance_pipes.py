"""The tap and guidance on real pipelines, with every scheduler that suits them.

`python tests/test_guidance_pipes.py` writes the table of what works with what.
"""

import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny_pipes
import torch
from torch import Tensor

if __name__ == "__main__":
    import conftest  # noqa: F401  (loads the checkout as `tastemaker`)

import diffusers

from tastemaker.guidance import tap
from tastemaker.guidance.decode import Decoder
from tastemaker.guidance.guide import Guide
from tastemaker.guidance.rewards import rate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "guidance_matrix.md"

SD = dict(tiny_pipes.SD_SCHEDULE, steps_offset=1)
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
DYNAMIC = dict(FLOW, use_dynamic_shifting=True, time_shift_type="exponential")
SDE = dict(algorithm_type="sde-dpmsolver++")

# Row of the table: class, options for models that predict noise, options for those that predict flow.
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", dict(SD, clip_sample=False), None),
    "Euler": ("EulerDiscreteScheduler", SD, None),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", SD, None),
    "Heun": ("HeunDiscreteScheduler", SD, None),
    "DPM++": ("DPMSolverMultistepScheduler", SD, FLOW),
    "DPM++ SDE": ("DPMSolverMultistepScheduler", SD | SDE, FLOW | SDE),
    "UniPC": ("UniPCMultistepScheduler", SD, FLOW),
    "FlowMatch Euler": ("FlowMatchEulerDiscreteScheduler", None, dict(shift=3.0)),
    "FlowMatch Heun": ("FlowMatchHeunDiscreteScheduler", None, dict(shift=3.0)),
}
FAMILIES = list(tiny_pipes.BUILDERS)
NOISY = re.compile("SDE|ancestral")  # these add noise at every step
PREDICT_NOISE = ("SD 1.5", "SDXL")
# These pass `mu`, a shift that depends on the size of the picture.
PASS_MU = ("Flux", "Qwen-Image", "Z-Image")
OWN = {
    **dict.fromkeys(FAMILIES, "FlowMatch Euler"),
    **{"SD 1.5": "DDIM", "SDXL": "Euler", "Wan": "UniPC"},
}

NO_SIGMAS = "does not support custom sigmas"
# What diffusers itself refuses: (family, scheduler) -> what it says.
REFUSED = {
    **{(family, "FlowMatch Heun"): NO_SIGMAS for family in PASS_MU},
    **{(f, s): NO_SIGMAS for f in ("Qwen-Image", "Z-Image") for s in ("DPM++", "DPM++ SDE")},
}


def options(family, scheduler):
    """The scheduler's settings for a family; None where what it predicts does not suit."""
    _, noise, flow = SCHEDULERS[scheduler]
    if family in PREDICT_NOISE:
        return noise
    shifting = flow and family in PASS_MU and "use_flow_sigmas" in flow
    return flow | DYNAMIC if shifting else flow


CELLS = [(f, s) for f in FAMILIES for s in SCHEDULERS if options(f, s) is not None]
WORKING = [cell for cell in CELLS if cell not in REFUSED]
OWN_CELLS = list(OWN.items())


@functools.cache
def own_pipe(family):
    pipe = tiny_pipes.make(family)
    return pipe, pipe.scheduler


def make(family, scheduler):
    """The family's pipeline with a new scheduler, as the family has it or as a user would set it."""
    pipe, own = own_pipe(family)
    kind = getattr(diffusers, SCHEDULERS[scheduler][0])
    settings = own.config if scheduler == OWN[family] else options(family, scheduler)
    pipe.scheduler = kind.from_config(settings)
    return pipe


def call(family, scheduler, prompts=2, size=(32, 48)):
    named = tiny_pipes.call(family, prompts, size)
    if (family, scheduler) == ("Z-Image", "UniPC"):  # its own are a list, which UniPC cannot use
        named["sigmas"] = np.linspace(1, 0, named["num_inference_steps"] + 1)[:-1]
    return named


def sample(pipe, named, kind="latent", seed=0):
    """What the pipeline gives; `seed` is of the noise that does not come from the generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tiny_pipes.output(pipe, named, kind)


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def guided(pipe, named, scale, frames=None, seed=0):
    decoder = Decoder(pipe, frames=frames)
    guide = Guide([(redness, 1.0)], decoder, scale=scale, window=(0, 1))
    with decoder.watching(), tap(pipe.scheduler, guide):
        return sample(pipe, named, seed=seed)


def reward(pipe, named, latents, frames=None):
    """Of the pictures that the pipeline would return, or of a few frames; one number a sample."""
    decoder = Decoder(pipe, frames=frames)
    decoder.size = named["height"], named["width"]
    with torch.no_grad():
        return rate(redness, decoder(latents))


class Runs(NamedTuple):
    plain: Tensor  # latents
    looked: Tensor  # the same with a tap that only looks
    seen: list  # steps, as that tap saw them
    wanted: Tensor
    ended: Tensor  # the same with a tap that replaces every x0 by `wanted`
    seeded: bool  # the pipeline's generators determine all of its noise


@functools.cache
def runs(family, scheduler):
    pipe, named, seen = make(family, scheduler), call(family, scheduler), []
    plain = sample(pipe, named)
    with tap(pipe.scheduler, seen.append):
        looked = sample(pipe, named)
    wanted = torch.randn(plain.shape, generator=torch.Generator().manual_seed(7))
    with tap(pipe.scheduler, lambda step: wanted):
        ended = sample(pipe, named)
    seeded = not NOISY.search(scheduler) or torch.equal(sample(pipe, named, seed=1), plain)
    return Runs(plain, looked, seen, wanted, ended, seeded)


def outcome(family, scheduler):
    """The table's cell: what happens, found by trying."""
    if options(family, scheduler) is None:
        return "–"
    try:
        found = runs(family, scheduler)
    except ValueError as error:
        return "no ³" if NO_SIGMAS in str(error) else f"no: {error}"
    if not torch.equal(found.looked, found.plain):
        return "no: looking changes the pictures"
    if not torch.allclose(found.ended, found.wanted, rtol=0, atol=1e-5):
        return "no: sampling does not end at the x0 that is asked for"
    notes = "" if found.seeded else " ¹"
    return "yes" + notes + (" ²" if "sigmas" in call(family, scheduler) else "")


def table():
    rows = [["", *FAMILIES], ["---"] * (len(FAMILIES) + 1)]
    rows += [[name, *(outcome(family, name) for family in FAMILIES)] for name in SCHEDULERS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- the table -------------------------------------------------------------------------------------


def test_the_table_is_what_is_found():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("|")] == table().splitlines()


@pytest.mark.parametrize("cell", REFUSED, ids=" with ".join)
def test_what_diffusers_refuses_leaves_no_tap_behind(cell):
    pipe = make(*cell)
    own = type(pipe.scheduler)
    with pytest.raises(ValueError, match=REFUSED[cell]), tap(pipe.scheduler, lambda step: None):
        sample(pipe, call(*cell))
    assert type(pipe.scheduler) is own


# --- the tap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", WORKING, ids=" with ".join)
def test_looking_changes_nothing(cell):
    found, steps = runs(*cell), tiny_pipes.STEPS
    assert torch.equal(found.looked, found.plain)
    assert len(found.seen) == (2 * steps - 1 if "Heun" in cell[1] else steps)
    assert all(step.x0.shape == found.plain.shape for step in found.seen)
    ratios = [step.noise_ratio for step in found.seen]
    assert ratios == sorted(ratios, reverse=True) and 0.9 < ratios[0] <= 1


@pytest.mark.parametrize("cell", WORKING, ids=" with ".join)
def test_the_pipeline_ends_at_the_x0_that_is_asked_for(cell):
    found = runs(*cell)
    torch.testing.assert_close(found.ended, found.wanted, rtol=0, atol=1e-5)


# --- guidance --------------------------------------------------------------------------------------


def raises_the_reward(cell):
    pipe, named = make(*cell), call(*cell)
    before = reward(pipe, named, runs(*cell).plain)
    after = reward(pipe, named, guided(pipe, named, 0.1))
    assert (after > before + 1e-4).all(), (before, after)


@pytest.mark.parametrize("cell", OWN_CELLS, ids=" with ".join)
def test_guidance_raises_the_reward(cell):
    raises_the_reward(cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [c for c in WORKING if c not in OWN_CELLS], ids=" with ".join)
def test_guidance_raises_the_reward_with_the_other_schedulers(cell):
    raises_the_reward(cell)


def test_guidance_by_a_few_frames_of_a_video_raises_the_reward_of_those():
    pipe, named = make("Wan", "UniPC"), call("Wan", "UniPC")
    before = reward(pipe, named, runs("Wan", "UniPC").plain, frames=2)
    after = reward(pipe, named, guided(pipe, named, 0.1, frames=2), frames=2)
    assert (after > before + 1e-4).all(), (before, after)


@pytest.mark.parametrize("cell", WORKING, ids=" with ".join)
def test_scale_0_is_the_plain_run(cell):
    assert torch.equal(guided(make(*cell), call(*cell), 0.0), runs(*cell).plain)


def is_the_same_again(cell):
    """By the samples' generators alone, where the pipeline hands them to its scheduler."""
    pipe, named, seeds = make(*cell), call(*cell), (1, 2) if runs(*cell).seeded else (1, 1)
    first, second = (guided(pipe, named, 0.1, frames=3, seed=seed) for seed in seeds)
    assert torch.equal(first, second) and not torch.equal(first, runs(*cell).plain)
    named["generator"][1] = torch.Generator().manual_seed(77)
    third = guided(pipe, named, 0.1, frames=3, seed=1)
    assert torch.allclose(third[0], first[0], rtol=0, atol=1e-5 * float(first.abs().max()))
    assert not torch.allclose(third[1], first[1], rtol=0, atol=0.1)


SEEDED_NOISE = [("SD 1.5", "Euler ancestral"), ("SDXL", "DPM++ SDE")]


@pytest.mark.parametrize("cell", [*OWN_CELLS, *SEEDED_NOISE], ids=" with ".join)
def test_a_guided_run_is_the_same_again(cell):
    is_the_same_again(cell)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [c for c in WORKING if c not in (*OWN_CELLS, *SEEDED_NOISE)], ids=" with ".join
)
def test_a_guided_run_is_the_same_again_with_the_other_schedulers(cell):
    is_the_same_again(cell)


@pytest.mark.parametrize("cell", OWN_CELLS, ids=" with ".join)
def test_a_guided_sample_is_the_same_in_a_batch_and_alone(cell):
    # A few frames of the video: through a whole clip the gradient is so steep in places that float32's
    # rounding moves it by more than this.
    pipe, named = make(*cell), call(*cell)
    together = guided(pipe, named, 0.1, frames=3)
    scale = together.abs().max()
    assert (together - runs(*cell).plain).abs().max() > 1e-3 * scale  # it is guided
    for index, expected in enumerate(together):
        (alone,) = guided(pipe, tiny_pipes.sample(named, index), 0.1, frames=3)
        assert (alone - expected).abs().max() <= 1e-5 * scale


HALF = [(f, torch.float16 if f in PREDICT_NOISE else torch.bfloat16) for f in FAMILIES]


@pytest.mark.parametrize(("family", "dtype"), HALF, ids=FAMILIES)
def test_guidance_of_a_pipeline_in_half_precision(family, dtype):
    pipe, named = tiny_pipes.make(family).to(dtype), call(family, OWN[family])
    for name, value in named.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            named[name] = value.to(dtype)
    plain, seen = sample(pipe, named), []
    with tap(pipe.scheduler, seen.append):
        assert torch.equal(sample(pipe, named), plain)
    assert torch.equal(guided(pipe, named, 0.0), plain) and seen
    pushed = guided(pipe, named, 0.2)
    assert pushed.dtype == plain.dtype and pushed.isfinite().all()
    assert (reward(pipe, named, pushed) - reward(pipe, named, plain)).mean() > 0


def write():
    TABLE.write_text(
        f"""\
# Which pipelines are guided with which schedulers

Found by `python tests/test_guidance_pipes.py` with diffusers {diffusers.__version__}, on pipelines of
the real classes with tiny random weights. "yes": looking at x0 leaves the pictures bit-identical, and
a run whose every x0 is replaced ends at what replaced it. "–": the scheduler is for models that predict
something else. DPM++ and UniPC need `prediction_type="flow_prediction"` and `use_flow_sigmas=True` for
the families from SD3 on; for Flux, Qwen-Image and Z-Image `use_dynamic_shifting=True` and
`time_shift_type="exponential"` as well.

{table()}

¹ The pipeline does not hand its `generator` to this scheduler. The noise that is added comes from
torch's global generator, so a seed reproduces a run of the pipeline, guided or not, only together with
`torch.manual_seed`; guidance warns of it. `best_of_n` and `steer_particles` hand the noise over
themselves: their seeds reproduce their images, in these functions.

² When the call passes `sigmas` as an array, e.g. `sigmas=np.linspace(1, 0, steps + 1)[:-1]`. The
pipeline's own are a list, which this scheduler cannot use.

³ Refused by diffusers: the pipeline sets the sigmas, and this scheduler takes none. Use FlowMatch Euler
or UniPC.
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    write()
    sys.stdout.write(TABLE.read_text(encoding="utf-8"))
