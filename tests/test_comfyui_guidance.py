"""Reward Guidance under ComfyUI's own samplers: what it changes, what it leaves alone, what it reports."""

import json
import time

import comfyui_sampling as s
import pytest
import torch
from comfyui_server import ExecutionError, interrupted
from PIL import Image
from safetensors.torch import load_file

from tastemaker.guidance.latents import linear_pixels
from tastemaker.scorers import load_scorer

pytestmark = pytest.mark.comfyui

STEPS = 6


@pytest.fixture(scope="module")
def nano():
    return load_scorer("nano")


def graph(
    guidance: dict | None,
    sampler: str = "euler",
    kind: str = "eps",
    vae: bool = False,
    seed: int = 1,
    side: int = 256,
    steps: int = STEPS,
    cfg: float = 3.0,
    naked: bool = False,
    batch: int = 2,
) -> dict:
    """Samples with the probe's MODEL, guided where `guidance` is the node's inputs; saves the latents."""
    nodes = {
        "model": ("ProbeModel", {"kind": kind, "naked": naked}),
        "nano": ("TastemakerLoadScorer", {"scorer": "nano"}),
        "empty": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": batch}),
        "sample": (
            "KSampler",
            {
                "model": ["guided" if guidance is not None else "model", 0],
                "positive": ["model", 1],
                "negative": ["model", 1],
                "latent_image": ["empty", 0],
                **dict(seed=seed, steps=steps, cfg=cfg, denoise=1.0),
                **dict(sampler_name=sampler, scheduler="normal"),
            },
        ),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "guidance"}),
    }
    if guidance is not None:
        defaults = dict(strength=0.2, window_start=1.0, window_end=0.5, stop_on_gap=False)
        wires = dict(model=["model", 0], scorer=["nano", 0])
        nodes["guided"] = ("TastemakerRewardGuidance", {**wires, **defaults, **guidance})
        wires = dict(model=["guided", 0], latent=["sample", 0])
        nodes["report"] = ("TastemakerGuidanceReport", wires)
    if vae:
        nodes["vae"] = ("ProbeVAE", {})
        nodes["guided"][1]["vae"] = ["vae", 0]
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def latents(comfyui, entry, node: str = "save"):
    (file,) = comfyui.files(entry, node, "latents")
    return load_file(file)["latent_tensor"]


def sampled(comfyui, *arguments, **named):
    return latents(comfyui, comfyui.run(graph(*arguments, **named)))


def scores(nano, samples):
    """What nano says of the latents' linear preview."""
    with torch.no_grad():
        return nano(linear_pixels(samples * s.FACTOR, s.RGB))


def said(entry, node: str = "report") -> str:
    (text,) = entry["outputs"][node]["text"]
    return text


OFF = {
    "strength 0": {"strength": 0.0},
    "an empty window": {"window_start": 0.7, "window_end": 0.7},
    "a window that no step meets": {"window_start": 0.004, "window_end": 0.003},
}


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_switched_off_it_changes_no_bit(comfyui, off, cfg):
    entry = comfyui.run(graph(OFF[off], "dpmpp_2m", cfg=cfg))
    assert torch.equal(latents(comfyui, entry), sampled(comfyui, None, "dpmpp_2m", cfg=cfg))
    assert said(entry) == "Nothing was guided."


SAMPLERS = ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_it_raises_the_score(comfyui, nano, sampler, kind):
    """With 12 steps: DPM++ 2M extrapolates, and of few steps takes the last push back in the next."""
    plain = sampled(comfyui, None, sampler, kind, steps=12)
    guided = sampled(comfyui, {}, sampler, kind, steps=12)
    gain = scores(nano, guided) - scores(nano, plain)
    assert (gain > 2).all(), gain


def test_it_is_stronger_where_it_is_told_to(comfyui, nano):
    values = [scores(nano, sampled(comfyui, {"strength": s})).mean() for s in (0.0, 0.05, 0.2)]
    assert values == sorted(values)


def test_through_a_vae_whose_weights_were_made_under_inference_mode(comfyui, nano):
    """The score of what the VAE itself decodes rises, by ComfyUI's own VAE Decode and Score Images.

    Guided to the last step: a random VAE turns the small change of an unguided one into another picture.
    """
    found = []
    for strength in (0.0, 0.25):
        prompt = graph({"strength": strength, "window_end": 0.0}, vae=True, side=96)
        wires = {"samples": ["sample", 0], "vae": ["vae", 0]}
        prompt["decode"] = {"class_type": "VAEDecode", "inputs": wires}
        wires = {"scorer": ["nano", 0], "images": ["decode", 0], "preview": False}
        prompt["score"] = {"class_type": "TastemakerScoreImages", "inputs": wires}
        wires = {"name": "guidance_vae", "value": ["score", 2]}
        prompt["dump"] = {"class_type": "ProbeDump", "inputs": wires}
        comfyui.run(prompt)
        found.append(json.loads((comfyui.output / "guidance_vae.json").read_text()))
    assert len(found[0]) == 2
    assert all(guided > plain + 1 for plain, guided in zip(*found, strict=True)), found


def test_runs_do_not_know_of_each_other(comfyui):
    """Two samplers of one guided MODEL in one graph make what each makes alone, and report apart."""
    both = graph({}, seed=1)
    for name in ("sample", "save", "report"):
        both[f"{name}2"] = json.loads(json.dumps(both[name]).replace('"sample"', '"sample2"'))
    both["sample2"]["inputs"]["seed"] = 2
    entry = comfyui.run(both)
    first, second = comfyui.run(graph({}, seed=1)), comfyui.run(graph({}, seed=2))
    assert torch.equal(latents(comfyui, entry), latents(comfyui, first))
    assert torch.equal(latents(comfyui, entry, "save2"), latents(comfyui, second))
    assert said(entry) == said(first) != said(second) == said(entry, "report2")
    assert f"of {STEPS} steps" in said(first)


def test_an_image_is_the_same_alone_and_in_a_batch(comfyui):
    alone, batch = (sampled(comfyui, {}, batch=count) for count in (1, 2))
    assert torch.allclose(alone[0], batch[0], atol=1e-4 * float(alone.abs().max()))


def test_the_report_shows_both_scores(comfyui):
    entry = comfyui.run(graph({"held_out": ["nano", 0]}))
    assert "to the held-out score" in said(entry)
    (file,) = comfyui.files(entry, "report")
    with Image.open(file) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(96, 165, 250), (251, 146, 60)} <= colours  # a curve each


def test_a_window_limits_what_is_guided(comfyui):
    """6 normal steps of SD 1.5 begin at a noise of 14.6, 4.9, 2.1, 1.1, 0.5 and 0.03."""
    windows = {6: (1.0, 0.0), 4: (1.0, 0.5), 2: (0.95, 0.5), 1: (0.1, 0.0)}
    for count, (start, end) in windows.items():
        entry = comfyui.run(graph({"window_start": start, "window_end": end}))
        assert said(entry).startswith(f"Guided {count} of {STEPS} steps")


def test_models_are_loaded_together_and_stay(comfyui):
    """Neither the scorer nor the decoder drives the diffusion model out."""
    comfyui.free()
    prompt = graph({}, vae=True, side=64)
    prompt["loaded"] = {"class_type": "ProbeLoaded", "inputs": {"after": ["sample", 0]}}
    wires = {"name": "guidance_loaded", "value": ["loaded", 0]}
    prompt["dump"] = {"class_type": "ProbeDump", "inputs": wires}
    comfyui.run(prompt)
    (found,) = json.loads((comfyui.output / "guidance_loaded.json").read_text())
    assert sorted(found) == ["BaseModel", "TAESD", "nano"]
    mark = comfyui.mark()
    prompt["sample"]["inputs"]["seed"] = 5
    comfyui.run(prompt)
    assert "Requested to load" not in comfyui.log(mark)


def test_an_interrupt_stops_it_and_the_next_run_is_as_ever(comfyui):
    before = sampled(comfyui, {}, seed=9)
    prompt_id = comfyui.queue(graph({}, vae=True, side=256, steps=2000))
    comfyui.wait_until_running(prompt_id)
    time.sleep(1.5)
    comfyui.interrupt()
    assert interrupted(comfyui.wait(prompt_id, 30, check=False))
    comfyui.free()
    assert torch.equal(sampled(comfyui, {}, seed=9), before)


def test_a_model_patched_afterwards_is_still_guided(comfyui):
    """Other nodes clone the MODEL."""
    prompt = graph({}, seed=3)
    plain = latents(comfyui, comfyui.run(prompt))
    wires = {"model": ["guided", 0], "sampling": "eps", "zsnr": False}
    prompt["patched"] = {"class_type": "ModelSamplingDiscrete", "inputs": wires}
    for name in ("sample", "report"):
        prompt[name]["inputs"]["model"] = ["patched", 0]
    entry = comfyui.run(prompt)
    assert torch.allclose(latents(comfyui, entry), plain, atol=1e-3)
    assert said(entry).startswith("Guided ")


def test_latents_without_a_preview_need_a_vae(comfyui):
    with pytest.raises(ExecutionError, match="no linear preview: connect a VAE"):
        comfyui.run(graph({}, naked=True))
    comfyui.run(graph({}, naked=True, vae=True, side=64))


def test_what_makes_no_sense_is_refused(comfyui):
    with pytest.raises(ExecutionError, match="must not be above window_start"):
        comfyui.run(graph({"window_start": 0.2}))
    prompt = graph({})
    prompt["report"]["inputs"]["latent"] = ["empty", 0]
    with pytest.raises(ExecutionError, match="latent was not sampled with this MODEL"):
        comfyui.run(prompt)
