"""Particle Sampler in SamplerCustom: Euler where it is off, better images where it is on."""

import json
import re
import time

import comfyui_sampling as s
import pytest
import torch
from comfyui_server import ExecutionError, interrupted
from PIL import Image

from tastemaker.guidance.latents import linear_pixels
from tastemaker.scorers import load_scorer

pytestmark = pytest.mark.comfyui

STEERING = dict(strength=6.0, eta=0.8, resample_below=0.5, checks=4)
CHECKS = dict(first_check=0.2, last_check=0.65)


def prompt(
    n: int = 8, kind: str = "eps", vae: bool = False, steps: int = 10, seed: int = 4, **named
) -> dict:
    """Particles in node "sample", saved in "save"; with strength None, core's Euler."""
    found = s.prompt(save=s.save("sample"))
    found["model"]["inputs"]["kind"] = kind
    found["empty"]["inputs"]["batch_size"] = n
    inputs = {**STEERING, **CHECKS, **named, "scorer": ["nano", 0]}
    if vae:
        inputs["vae"] = ["vae", 0]
    found["sampler"] = s.node("TastemakerParticleSampler", **inputs)
    if inputs["strength"] is None:
        found["sampler"] = s.node("KSamplerSelect", sampler_name="euler")
    wires = dict(model=["model", 0], scheduler="normal", steps=steps, denoise=1.0)
    found["sigmas"] = s.node("BasicScheduler", **wires)
    wires = dict(model=["model", 0], positive=["model", 1], negative=["model", 1], cfg=3.0)
    wires |= dict(add_noise=True, noise_seed=seed, latent_image=["empty", 0])
    wires |= dict(sampler=["sampler", 0], sigmas=["sigmas", 0])
    found["sample"] = s.node("SamplerCustom", **wires)
    return found


def sampled(comfyui, *arguments, **named) -> torch.Tensor:
    return s.latents(comfyui, comfyui.run(prompt(*arguments, **named)))


def scores(latents: torch.Tensor) -> torch.Tensor:
    """What nano says of the latents' linear preview."""
    with torch.no_grad():
        return load_scorer("nano")(linear_pixels(latents * s.FACTOR, s.RGB))


OFF = {"strength 0": dict(strength=0.0), "no checks": dict(checks=0), "one particle": dict(n=1)}


@pytest.mark.parametrize("off", OFF)
def test_switched_off_it_is_euler_bit_for_bit(comfyui, off):
    for kind in ("eps", "flow"):
        found = sampled(comfyui, kind=kind, **OFF[off])
        plain = sampled(comfyui, kind=kind, strength=None, n=len(found))
        assert torch.equal(found, plain)


def test_without_resampling_it_only_sorts(comfyui):
    plain = sampled(comfyui, strength=None)
    found = sampled(comfyui, resample_below=0.0)
    order = scores(plain).argsort(descending=True, stable=True)
    assert torch.equal(found, plain[order]) and order.tolist() != sorted(order)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_it_raises_the_scores(comfyui, kind):
    """By more than the standard deviation of the plain batch, on average over three batches."""
    gains = []
    for seed in range(3):
        plain, found = (
            scores(sampled(comfyui, kind=kind, strength=strength, seed=seed))
            for strength in (None, 6.0)
        )
        gains.append(float((found.mean() - plain.mean()) / plain.std()))
        assert found.tolist() == sorted(found.tolist(), reverse=True)
    assert sum(gains) / 3 > 1, gains


def test_copies_become_different_images(comfyui):
    """All of which are equal with an eta of 0."""
    same = sampled(comfyui, resample_below=1.0, eta=0.0, last_check=0.9)
    different = sampled(comfyui, resample_below=1.0, last_check=0.9)

    def apart(found: torch.Tensor) -> int:
        return len(torch.unique(found.flatten(1), dim=0))

    assert apart(same) < 8 == apart(different)


def test_the_same_seed_makes_the_same_images(comfyui):
    before = sampled(comfyui)
    comfyui.free()
    assert torch.equal(sampled(comfyui), before)


def test_through_a_vae_and_loaded_together(comfyui):
    comfyui.free()
    graph = prompt(n=4, vae=True)
    graph["loaded"] = s.node("ProbeLoaded", after=["sample", 0])
    graph["dump"] = s.node("ProbeDump", name="particles_loaded", value=["loaded", 0])
    mark = comfyui.mark()
    comfyui.run(graph)
    (found,) = s.dumped(comfyui, "particles_loaded")
    assert sorted(found) == ["BaseModel", "TAESD", "nano"]
    asked = [line for line in comfyui.log(mark).splitlines() if "Requested to load" in line]
    assert len(asked) == 3, asked


def report(graph: dict) -> dict:
    """With what Guidance Report says of it, in node "report"."""
    wires = dict(sampler=["sampler", 0], latent=["sample", 0])
    return {**graph, "report": s.node("TastemakerGuidanceReport", **wires)}


def test_the_report_tells_what_became_of_the_particles(comfyui):
    graph = report(prompt(held_out=["nano", 0]))
    entry = comfyui.run(graph)
    said = re.fullmatch(
        r"Weighed 4 times in 10 steps, copied (\d) times: the images descend from (\d) of 8. The mean "
        r"score of the forming images went from (\S+) to (\S+)\. Held out: (\S+) to (\S+)\.",
        s.said(entry, "report"),
    )
    copied, left = int(said[1]), int(said[2])
    assert 1 <= copied <= 4 and 1 <= left < 8
    found = scores(s.latents(comfyui, entry)).mean()
    assert float(said[4]) == pytest.approx(float(found), rel=1e-3)
    assert (said[3], said[4]) == (said[5], said[6]) and float(said[4]) > float(said[3])
    (file,) = comfyui.files(entry, "report")
    with Image.open(file) as picture:
        assert picture.height > 700  # what is left of the particles is below the scores


def test_the_held_out_scorer_only_looks(comfyui):
    assert torch.equal(sampled(comfyui, held_out=["nano", 0]), sampled(comfyui))


def test_runs_are_told_apart(comfyui):
    """Two of one SAMPLER, in one graph; and what was not steered says so."""
    graph = report(prompt(seed=4))
    again = json.loads(json.dumps(graph).replace('"sample"', '"sample2"'))
    graph |= {"sample2": again["sample2"], "report2": again["report"]}
    graph["sample2"]["inputs"]["noise_seed"] = 5
    entry = comfyui.run(graph)
    alone = [comfyui.run(report(prompt(seed=seed))) for seed in (4, 5)]
    first, second = (s.said(each, "report") for each in alone)
    assert (s.said(entry, "report"), s.said(entry, "report2")) == (first, second)
    assert first != second
    for off in (dict(strength=0.0), dict(n=1)):
        entry = comfyui.run(report(prompt(**off)))
        assert s.said(entry, "report") == "Nothing was steered."


def test_a_report_needs_the_right_wires(comfyui):
    graph = report(prompt(steps=3))
    del graph["save"]  # a prompt of which a part makes sense is not refused
    graph["report"]["inputs"]["model"] = ["model", 0]
    with pytest.raises(ExecutionError, match="one of the two"):
        comfyui.run(graph)
    del graph["report"]["inputs"]["model"], graph["report"]["inputs"]["sampler"]
    with pytest.raises(ExecutionError, match="one of the two"):
        comfyui.run(graph)
    graph["report"]["inputs"] = dict(sampler=["sampler", 0], latent=["empty", 0])
    with pytest.raises(ExecutionError, match="latent was not sampled with this SAMPLER"):
        comfyui.run(graph)


def test_an_interrupt_stops_it(comfyui):
    prompt_id = comfyui.queue(prompt(steps=5000))
    comfyui.wait_until_running(prompt_id)
    time.sleep(0.7)
    comfyui.interrupt()
    assert interrupted(comfyui.wait(prompt_id, 30, check=False))


def test_what_makes_no_sense_is_refused(comfyui):
    with pytest.raises(ExecutionError, match="must not be below first_check"):
        comfyui.run(prompt(first_check=0.7))
    graph = prompt()
    graph["latent"] = s.node("ProbeLatent", spec=json.dumps([dict(count=3, height=8, width=8)]))
    graph["sample"]["inputs"]["latent_image"] = ["latent", 0]
    with pytest.raises(ExecutionError, match="the latents of the batch differ"):
        comfyui.run(graph)
