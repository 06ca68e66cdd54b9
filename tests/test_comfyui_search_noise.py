"""Search Noise: what it tries, what it keeps, and that its noise makes the image again."""

import time

import comfyui_sampling as s
import pytest
import torch
from comfyui_server import ExecutionError, interrupted

pytestmark = pytest.mark.comfyui

SEARCH = dict(method="zero-order", rounds=3, n=3, reach=0.5, keep=1, batch_size=2, seed=10)


def search(comfyui, **named) -> tuple[torch.Tensor, list[float], list[str]]:
    """Latents, scores and the lines of the summary."""
    entry = comfyui.run(prompt(**named))
    (scores,) = s.dumped(comfyui, "scores")
    return s.latents(comfyui, entry), scores["values"]["values"], s.said(entry).splitlines()


def prompt(**named) -> dict:
    found = s.choosing("TastemakerSearchNoise", **{**SEARCH, **named})
    found["scores"] = s.node("ProbeDump", name="scores", value=["best", 3])
    return found


def alone(comfyui, seed: int, **named) -> torch.Tensor:
    return s.latents(comfyui, comfyui.run(s.ksampler(seed=seed, **named)))


def test_the_first_noise_is_ksamplers(comfyui):
    for sampler in ("euler", "dpmpp_sde"):
        found, _, _ = search(comfyui, rounds=1, n=1, sampler_name=sampler)
        assert torch.equal(found, alone(comfyui, 10, sampler_name=sampler))


def test_random_noises_are_those_of_the_next_seeds(comfyui):
    found, scores, lines = search(comfyui, method="random", rounds=2, n=2, keep=4)
    wanted = torch.cat([alone(comfyui, seed) for seed in range(10, 14)])
    nearest = [float((wanted - each).abs().amax((1, 2, 3)).min()) for each in found]
    assert max(nearest) < 1e-4 * float(wanted.abs().max())
    assert len({int((wanted - each).abs().amax((1, 2, 3)).argmin()) for each in found}) == 4
    assert scores == sorted(scores, reverse=True)
    assert lines[-1] == "24 calls of the model, counting each image by itself."


def test_zero_order_stays_near_the_best(comfyui):
    """All of the second round differ from the best of the first as far as they may reach."""
    first, (before,), _ = search(comfyui, rounds=1)
    near, scores, lines = search(comfyui, rounds=2, reach=0.05, keep=4)
    apart = (near - first).flatten(1).norm(dim=1) / first.norm()
    others, _, _ = search(comfyui, rounds=1, keep=3)
    far = (others[1:] - first).flatten(1).norm(dim=1) / first.norm()
    assert sorted(apart < 0.2).count(True) >= 3 and (far > 0.5).all(), (apart, far)
    assert scores[0] >= before and lines[1].startswith("Round 1: the best ")


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_the_noise_makes_the_image_again(comfyui, sampler):
    graph = prompt(sampler_name=sampler)
    named = dict(model=["model", 0], positive=["model", 1], negative=["model", 1], cfg=3.0)
    graph["guider"] = s.node("CFGGuider", **named)
    graph["sampler"] = s.node("KSamplerSelect", sampler_name=sampler)
    named = dict(model=["model", 0], scheduler="normal", steps=6, denoise=1.0)
    graph["sigmas"] = s.node("BasicScheduler", **named)
    wires = dict(noise=["best", 2], guider=["guider", 0], sampler=["sampler", 0])
    wires |= dict(sigmas=["sigmas", 0], latent_image=["empty", 0])
    graph["again"] = s.node("SamplerCustomAdvanced", **wires)
    graph["saved"] = s.node("SaveLatent", samples=["again", 0], filename_prefix="again")
    entry = comfyui.run(graph)
    wanted = s.latents(comfyui, entry)
    found = s.latents(comfyui, entry, "saved")
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)
    graph["other"] = s.node("EmptyLatentImage", width=64, height=96, batch_size=1)
    graph["again"]["inputs"]["latent_image"] = ["other", 0]
    with pytest.raises(ExecutionError, match="connect the latent_image of Search Noise"):
        comfyui.run(graph)


def test_a_search_finds_better_images(comfyui):
    """Than as many random ones, on this model whose score is smooth in the noise."""
    _, (found,), _ = search(comfyui, rounds=6, n=3, reach=0.4)
    _, (random,), _ = search(comfyui, rounds=6, n=3, method="random")
    assert found > random


def test_an_interrupt_stops_it_and_the_next_run_is_as_ever(comfyui):
    """Between two rounds, or in the midst of one."""
    before, _, _ = search(comfyui, seed=40)
    for long in (dict(steps=5000), dict(rounds=64, steps=60)):
        prompt_id = comfyui.queue(prompt(seed=40, **long))
        comfyui.wait_until_running(prompt_id)
        time.sleep(1.0)
        comfyui.interrupt()
        assert interrupted(comfyui.wait(prompt_id, 30, check=False))
    comfyui.free()
    assert torch.equal(search(comfyui, seed=40)[0], before)


def test_what_makes_no_sense_is_refused(comfyui):
    with pytest.raises(ExecutionError, match=r"keep \(10\) must not be above rounds \* n \(9\)"):
        comfyui.run(prompt(keep=10))
