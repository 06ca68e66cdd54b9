"""The sampling nodes on latents of videos, [N, C, T, h, w]."""

import json

import comfyui_sampling as s
import pytest
import torch

pytestmark = pytest.mark.comfyui

FRAMES = 3


def video(graph: dict, count: int = 1) -> dict:
    """The graph, whose model, VAE and empty latents are of videos."""
    graph["model"]["inputs"]["video"] = graph["vae"]["inputs"]["video"] = True
    part = dict(count=count, height=8, width=8, frames=FRAMES, empty=True)
    graph["empty"] = s.node("ProbeLatent", spec=json.dumps([part]))
    return graph


def images(graph: dict, output: int = 0) -> dict:
    """The graph, which dumps the images of "best"."""
    graph["images"] = s.node("ProbeDump", name="images", value=["best", output])
    return graph


ONCE = {"pruning": "once", "pruning.after": 0.34, "pruning.goes_on": 0.5}


@pytest.mark.parametrize("preview_vae", [False, True])
def test_best_of_n(comfyui, preview_vae):
    """Survivors of pruning are KSampler's videos."""
    named = dict(preview_vae=["vae", 0]) if preview_vae else {}
    graph = images(video(s.best_of_n(n=4, keep=2, batch_size=3, **ONCE, **named)))
    entry = comfyui.run(graph)
    found, seeds = s.latents(comfyui, entry), s.dumped(comfyui, "seeds")
    alone = [comfyui.run(video(s.ksampler(seed=seed))) for seed in seeds]
    wanted = torch.cat([s.latents(comfyui, each) for each in alone])
    assert found.shape == (2, 4, FRAMES, 8, 8)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)
    (dump,) = s.dumped(comfyui, "images")
    assert dump["shape"] == [2 * FRAMES, 64, 64, 3]
    calls = 4 * 2 + 2 * 4
    assert s.said(entry).splitlines()[-1].startswith(f"{calls} calls of the model, 67%")


def test_the_best_videos_are_kept(comfyui):
    """By what Score Video says of what VAE Decode makes of them."""
    graph = video(s.best_of_n(n=3, keep=3))
    comfyui.run(graph)
    seeds, (scores,) = s.dumped(comfyui, "seeds"), s.dumped(comfyui, "scores")
    found = []
    for seed in seeds:
        alone = video(s.ksampler(seed=seed))
        alone["decode"] = s.node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
        alone["rate"] = s.node(
            "TastemakerScoreVideo", scorer=["nano", 0], images=["decode", 0], frames=0
        )
        alone["dump"] = s.node("ProbeDump", name="video", value=["rate", 1])
        comfyui.run(alone)
        found += s.dumped(comfyui, "video")
    torch.testing.assert_close(torch.tensor(found), torch.tensor(scores["values"]["values"]))
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_search_noise(comfyui):
    settings = dict(method="zero-order", rounds=2, n=2, reach=0.5, keep=1, batch_size=2, seed=10)
    graph = images(video(s.choosing("TastemakerSearchNoise", **settings)))
    wires = dict(model=["model", 0], positive=["model", 1], negative=["model", 1], cfg=3.0)
    graph["guider"] = s.node("CFGGuider", **wires)
    graph["sampler"] = s.node("KSamplerSelect", sampler_name="euler")
    scheduled = dict(model=["model", 0], scheduler="normal", steps=6, denoise=1.0)
    graph["sigmas"] = s.node("BasicScheduler", **scheduled)
    wires = dict(noise=["best", 2], guider=["guider", 0], sampler=["sampler", 0])
    wires |= dict(sigmas=["sigmas", 0], latent_image=["empty", 0])
    graph["again"] = s.node("SamplerCustomAdvanced", **wires)
    graph["saved"] = s.node("SaveLatent", samples=["again", 0], filename_prefix="video_again")
    entry = comfyui.run(graph)
    found, again = s.latents(comfyui, entry), s.latents(comfyui, entry, "saved")
    assert found.shape == (1, 4, FRAMES, 8, 8)
    assert torch.allclose(found, again, atol=1e-4 * float(found.abs().max()), rtol=0)
    (dump,) = s.dumped(comfyui, "images")
    assert dump["shape"] == [FRAMES, 64, 64, 3]


def particles(strength: float, vae: bool = False) -> dict:
    graph = video(s.prompt(save=s.save("sample")), count=6)
    inputs = dict(strength=strength, eta=0.8, resample_below=0.5, checks=4)
    inputs |= dict(first_check=0.2, last_check=0.65, scorer=["nano", 0])
    graph["sampler"] = s.node(
        "TastemakerParticleSampler", **inputs, **(dict(vae=["vae", 0]) if vae else {})
    )
    scheduled = dict(model=["model", 0], scheduler="normal", steps=10, denoise=1.0)
    graph["sigmas"] = s.node("BasicScheduler", **scheduled)
    wires = dict(model=["model", 0], positive=["model", 1], negative=["model", 1], cfg=3.0)
    wires |= dict(add_noise=True, noise_seed=4, latent_image=["empty", 0])
    graph["sample"] = s.node("SamplerCustom", **wires, sampler=["sampler", 0], sigmas=["sigmas", 0])
    graph["decode"] = s.node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    return graph


@pytest.mark.parametrize("vae", [False, True])
def test_particles(comfyui, vae):
    """Some have the same forefather, and none is the same as another."""
    plain, found = (
        s.latents(comfyui, comfyui.run(particles(strength, vae))) for strength in (0.0, 6.0)
    )
    assert found.shape == plain.shape == (6, 4, FRAMES, 8, 8)
    assert not torch.equal(found.sort(0).values, plain.sort(0).values)
    assert len(torch.unique(found.flatten(1), dim=0)) == 6


def test_guidance(comfyui):
    graphs = [video(s.ksampler()) for _ in range(2)]
    wires = dict(model=["model", 0], scorer=["nano", 0], strength=0.2)
    wires |= dict(window_start=1.0, window_end=0.5, stop_on_gap=False)
    graphs[1]["guided"] = s.node("TastemakerRewardGuidance", **wires)
    graphs[1]["sample"]["inputs"]["model"] = ["guided", 0]
    plain, guided = (s.latents(comfyui, comfyui.run(graph)) for graph in graphs)
    moved = (guided - plain).abs().amax((0, 1, 3, 4))
    assert (moved > 1e-3).all(), "every frame is guided"
