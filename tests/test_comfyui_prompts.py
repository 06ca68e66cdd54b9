"""The text that goes to scorers that read prompts, from the sampling nodes."""

import comfyui_sampling as s
import pytest
import torch

from tastemaker.guidance.latents import linear_pixels

pytestmark = pytest.mark.comfyui

TEXTS = ("red", "blue")


def reading(graph: dict, node: str, text: str | None) -> dict:
    """The graph, whose `node` has the scorer that reads, and the text as its prompt."""
    graph["reader"], graph["text"] = s.node("ProbeScorer"), s.node("ProbeList", spec=f'["{text}"]')
    graph[node]["inputs"]["scorer"] = ["reader", 0]
    if text:
        graph[node]["inputs"]["prompt"] = ["text", 0]
    return graph


def redness(latents: torch.Tensor) -> torch.Tensor:
    """Of their linear preview."""
    red, _, blue = linear_pixels(latents * s.FACTOR, s.RGB).mean((2, 3)).unbind(1)
    return red - blue


def best(comfyui, node: str, text: str | None, **named) -> tuple[torch.Tensor, list[float]]:
    """Latents, best first, and their scores, in the graph's own VAE."""
    graph = reading(s.choosing(node, **named), "best", text)
    graph["scores"] = s.node("ProbeDump", name="scores", value=["best", 3])
    entry = comfyui.run(graph)
    (scores,) = s.dumped(comfyui, "scores")
    return s.latents(comfyui, entry), scores["values"]["values"]


SEARCH = dict(method="random", rounds=2, n=2, reach=1.0, keep=4, batch_size=4, seed=10)


@pytest.mark.parametrize(
    "node, settings", [("TastemakerBestOfN", s.CHOICE), ("TastemakerSearchNoise", SEARCH)]
)
def test_finished_images_are_chosen_by_the_prompt(comfyui, node, settings):
    (red, high), (blue, low), (none, _) = (
        best(comfyui, node, text, **settings) for text in (*TEXTS, None)
    )
    assert torch.equal(red, blue.flip(0)) and torch.equal(none, blue)
    assert high == [-score for score in reversed(low)] and high == sorted(high, reverse=True)


def test_previews_are_chosen_by_the_prompt(comfyui):
    """Half go on after the first step: with the other prompt, the other half."""
    once = {"pruning": "once", "pruning.after": 0.17, "pruning.goes_on": 0.5}
    settings = {**s.CHOICE, **once, "keep": 2}
    gone_on = []
    for text in TEXTS:
        graph = reading(s.choosing("TastemakerBestOfN", **settings), "best", text)
        comfyui.run({**graph, "seeds": s.node("ProbeDump", name="seeds", value=["best", 2])})
        gone_on.append(set(s.dumped(comfyui, "seeds")))
    assert gone_on[0] | gone_on[1] == {10, 11, 12, 13} and not gone_on[0] & gone_on[1]


def custom(node: str, **inputs) -> dict:
    """SamplerCustom of 8 images, whose SAMPLER is of this node."""
    graph = s.prompt(sampler=(node, inputs), save=s.save("sample"))
    graph["empty"]["inputs"]["batch_size"] = 8
    wires = dict(model=["model", 0], scheduler="normal", steps=10, denoise=1.0)
    graph["sigmas"] = s.node("BasicScheduler", **wires)
    wires = dict(model=["model", 0], positive=["model", 1], negative=["model", 1], cfg=3.0)
    wires |= dict(add_noise=True, noise_seed=4, latent_image=["empty", 0])
    graph["sample"] = s.node("SamplerCustom", **wires, sampler=["sampler", 0], sigmas=["sigmas", 0])
    return graph


def test_particles_are_steered_by_the_prompt(comfyui):
    how = dict(strength=6.0, eta=0.8, resample_below=0.5, checks=4)
    how |= dict(first_check=0.2, last_check=0.65)
    found = []
    for text in TEXTS:
        graph = reading(custom("TastemakerParticleSampler", **how), "sampler", text)
        found.append(redness(s.latents(comfyui, comfyui.run(graph))))
    assert found[0].min() > found[1].max()


def test_guidance_follows_the_prompt(comfyui):
    how = dict(model=["model", 0], strength=0.2, window_start=1.0, window_end=0.5)
    found = []
    for text in TEXTS:
        graph = custom("KSamplerSelect", sampler_name="euler")
        graph["guided"] = s.node("TastemakerRewardGuidance", **how, stop_on_gap=False)
        graph["sample"]["inputs"]["model"] = ["guided", 0]
        found.append(redness(s.latents(comfyui, comfyui.run(reading(graph, "guided", text)))))
    assert (found[0] > found[1] + 0.05).all(), found
