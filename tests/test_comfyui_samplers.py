"""Best of N Sampler under ComfyUI's own samplers: its candidates are KSampler's, pruned or not."""

import json
import re
import time
from statistics import mean

import comfyui_sampling as s
import pytest
import torch
from comfyui_server import ExecutionError, interrupted
from PIL import Image

pytestmark = pytest.mark.comfyui

# 4 candidates, of which half go on after 2 of 6 steps.
ONCE = {"pruning": "once", "pruning.after": 0.34, "pruning.goes_on": 0.5}


def solo(comfyui, seeds, **named) -> torch.Tensor:
    """What KSampler makes of each seed, a batch of 1 each."""
    entries = [comfyui.run(s.ksampler(seed=seed, **named)) for seed in seeds]
    return torch.cat([s.latents(comfyui, entry) for entry in entries])


def best(comfyui, **named) -> tuple[torch.Tensor, list[int], list[str]]:
    """Latents, seeds and the lines of the summary."""
    entry = comfyui.run(s.best_of_n(**named))
    return s.latents(comfyui, entry), s.dumped(comfyui, "seeds"), s.said(entry).splitlines()


def alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


def test_one_candidate_is_ksamplers_image_bit_for_bit(comfyui):
    for sampler in ("euler", "dpmpp_2m_sde", "euler_ancestral"):
        found, seeds, _ = best(comfyui, n=1, keep=1, sampler_name=sampler)
        assert seeds == [10]
        assert torch.equal(found, solo(comfyui, [10], sampler_name=sampler)), sampler


def samplers(comfyui) -> list[str]:
    described = comfyui.object_info("TastemakerBestOfN")["TastemakerBestOfN"]
    return described["input"]["required"]["sampler_name"][1]["options"]


@pytest.mark.parametrize("part", range(4))
def test_survivors_of_every_sampler_are_ksamplers_images(comfyui, part):
    """Batches of 2 of 3 candidates: some have had neighbours, others not."""
    names = samplers(comfyui)
    assert len(names) > 40 and "dpm_adaptive" not in names
    for name in names[part::4]:
        pruning = ONCE if name != "dpm_fast" else {}
        how = dict(sampler_name=name, steps=5)
        found, seeds, _ = best(comfyui, n=3, keep=2, batch_size=2, **how, **pruning)
        assert alike(found, solo(comfyui, seeds, **how)), name


def test_the_best_are_kept(comfyui):
    """By what Score Images says of what VAE Decode makes of them."""
    everything = s.best_of_n(n=5, keep=5)
    everything["decode"] = s.node("VAEDecode", samples=["best", 1], vae=["vae", 0])
    wires = dict(scorer=["nano", 0], images=["decode", 0], preview=False)
    everything["rate"] = s.node("TastemakerScoreImages", **wires)
    everything["dump"] = s.node("ProbeDump", name="rated", value=["rate", 2])
    entry = comfyui.run(everything)
    seeds, (scores,) = s.dumped(comfyui, "seeds"), s.dumped(comfyui, "scores")
    assert sorted(seeds) == [10, 11, 12, 13, 14]
    assert scores["values"]["values"] == s.dumped(comfyui, "rated")
    assert scores["values"]["values"] == sorted(scores["values"]["values"], reverse=True)
    (sheet,) = comfyui.files(entry, "best")
    assert Image.open(sheet).width >= 512
    found, kept, _ = best(comfyui, n=5, keep=2)
    assert kept == seeds[:2] and alike(found, s.latents(comfyui, entry)[:2])


def test_pruning_keeps_those_whose_previews_score_best(comfyui):
    """At the last step, what Euler predicts is the finished image."""
    _, seeds, _ = best(comfyui, n=6, keep=6)
    last = {"pruning": "once", "pruning.after": 0.99, "pruning.goes_on": 0.3}
    prompt = s.best_of_n(n=6, keep=1, preview_vae=["vae", 0], **last)
    prompt["best"]["inputs"]["keep"] = 2
    comfyui.run(prompt)
    assert s.dumped(comfyui, "seeds") == seeds[:2]


def test_pruned_candidates_cost_nothing_more(comfyui):
    _, _, lines = best(comfyui, n=8, keep=1, pruning="halving", steps=10)
    left = [int(line.split(", ")[1].split()[0]) for line in lines if line.startswith("After")]
    assert left == [4, 2, 1]
    calls = 8 + 4 + 2 * 2 + 6  # the last cut is after 40 % of the steps
    assert lines[-1] == f"{calls} calls of the model, 28% of those for all 8."
    _, _, lines = best(comfyui, n=8, keep=1, steps=10)
    assert lines[-1] == "80 calls of the model, 100% of those for all 8."


def test_the_batch_is_split_and_shrinks(comfyui):
    """As the model sees it: CFG doubles the batch, at 10 steps."""
    prompt = s.best_of_n(n=6, keep=1, batch_size=4, **ONCE)
    prompt["seen"] = s.node("ProbeBatches", model=["model", 0])
    prompt["best"]["inputs"]["model"] = ["seen", 0]
    prompt["batches"] = s.node("ProbeSeen", after=["best", 1], model=["seen", 0])
    prompt["dump"] = s.node("ProbeDump", name="batches", value=["batches", 0])
    comfyui.run(prompt)
    assert s.dumped(comfyui, "batches") == [4, 2] * 2 + [3] * 4


def test_an_image_that_is_changed_under_a_mask(comfyui):
    """ddim puts noise of its own on what the mask keeps."""
    for sampler in ("ddim", "euler_ancestral"):
        how = dict(sampler_name=sampler, denoise=0.6)
        spec = json.dumps([dict(count=1, height=8, width=8, mask=1)])
        latent = dict(latent=s.node("ProbeLatent", spec=spec))
        given = dict(latent_image=["latent", 0])
        entry = comfyui.run({**s.best_of_n(n=3, keep=3, **how, **given), **latent})
        seeds = s.dumped(comfyui, "seeds")
        alone = [comfyui.run({**s.ksampler(seed=n, **how, **given), **latent}) for n in seeds]
        wanted = torch.cat([s.latents(comfyui, each) for each in alone])
        assert alike(s.latents(comfyui, entry), wanted), sampler


def test_guided_candidates_are_those_of_a_guided_ksampler(comfyui):
    """Guidance remembers every image of its batch: it must see all of them at every step."""
    wires = dict(model=["model", 0], scorer=["nano", 0], strength=0.2)
    wires |= dict(window_start=1.0, window_end=0.0, stop_on_gap=False)
    guided = dict(guided=s.node("TastemakerRewardGuidance", **wires))
    given = dict(model=["guided", 0], sampler_name="dpmpp_2m")
    entry = comfyui.run({**s.best_of_n(n=3, keep=3, batch_size=1, **given), **guided})
    seeds = s.dumped(comfyui, "seeds")
    alone = [comfyui.run({**s.ksampler(seed=n, **given), **guided}) for n in seeds]
    wanted = torch.cat([s.latents(comfyui, each) for each in alone])
    assert alike(s.latents(comfyui, entry), wanted)


def reported(comfyui, prompt: dict, latent: str) -> tuple[dict, list[float]]:
    """The run of a guided MODEL, and the first and the last score that Guidance Report says of it."""
    wires = dict(model=["model", 0], scorer=["nano", 0], strength=0.2)
    wires |= dict(window_start=1.0, window_end=0.0, stop_on_gap=False)
    prompt["guided"] = s.node("TastemakerRewardGuidance", **wires)
    output = 1 if latent == "best" else 0
    wires = dict(latent=[latent, output], model=["guided", 0])
    prompt["report"] = s.node("TastemakerGuidanceReport", **wires)
    entry = comfyui.run(prompt)
    found = re.search(r"went from (\S+) to (\S+)\.", s.said(entry, "report"))
    return entry, [float(number) for number in found.groups()]


def test_guidance_is_given_only_candidates_that_are_left(comfyui):
    """It does with them, and says of them, what it does and says where they are alone."""
    given = dict(model=["guided", 0])
    prompt = s.best_of_n(n=4, keep=2, batch_size=3, **given, **ONCE)
    entry, (first, last) = reported(comfyui, prompt, "best")
    seeds = s.dumped(comfyui, "seeds")
    alone = {n: reported(comfyui, s.ksampler(seed=n, **given), "sample") for n in range(10, 14)}
    assert first == pytest.approx(mean(said[0] for _, said in alone.values()), abs=2e-3)
    assert last == pytest.approx(mean(alone[n][1][1] for n in seeds), abs=2e-3)
    wanted = torch.cat([s.latents(comfyui, alone[n][0]) for n in seeds])
    assert alike(s.latents(comfyui, entry), wanted)


def test_guidance_is_reported_of_those_kept(comfyui):
    """Of all that were sampled, whichever of them come back, in whichever order."""
    given = dict(model=["guided", 0], n=3)
    both = [reported(comfyui, s.best_of_n(keep=keep, **given), "best")[1] for keep in (3, 1)]
    assert both[0] == both[1]


def test_models_are_loaded_together_and_stay(comfyui):
    comfyui.free()
    prompt = s.best_of_n(preview_vae=["vae", 0], keep=1, **ONCE)
    prompt["loaded"] = s.node("ProbeLoaded", after=["best", 1])
    prompt["dump"] = s.node("ProbeDump", name="loaded", value=["loaded", 0])
    mark = comfyui.mark()
    comfyui.run(prompt)
    (found,) = s.dumped(comfyui, "loaded")
    assert sorted(found) == ["BaseModel", "TAESD", "nano"]
    asked = [line for line in comfyui.log(mark).splitlines() if "Requested to load" in line]
    assert len(asked) == 3, asked


def test_an_interrupt_stops_it_and_the_next_run_is_as_ever(comfyui):
    before, _, _ = best(comfyui, seed=30)
    prompt_id = comfyui.queue(s.best_of_n(seed=30, steps=5000, keep=1, **ONCE))
    comfyui.wait_until_running(prompt_id)
    time.sleep(1.0)
    comfyui.interrupt()
    assert interrupted(comfyui.wait(prompt_id, 30, check=False))
    comfyui.free()
    assert torch.equal(best(comfyui, seed=30)[0], before)


def test_a_held_out_scorer_only_looks(comfyui):
    _, seeds, lines = best(comfyui, keep=2, held_out=["nano", 0])
    assert lines[1] == "Held out: " + lines[0]
    assert seeds == best(comfyui, keep=2)[1]


def test_what_makes_no_sense_is_refused(comfyui):
    batch = s.best_of_n()
    batch["empty"]["inputs"]["batch_size"] = 2
    refused = {
        r"keep \(5\) must not be above n \(4\)": s.best_of_n(keep=5),
        "latent_image must hold one latent, without sound, got 2": batch,
        "dpm_fast cannot be pruned": s.best_of_n(sampler_name="dpm_fast", keep=1, **ONCE),
        "dpm_adaptive": s.best_of_n(sampler_name="dpm_adaptive"),
    }
    for message, prompt in refused.items():
        with pytest.raises(ExecutionError, match=message):
            comfyui.run(prompt)
