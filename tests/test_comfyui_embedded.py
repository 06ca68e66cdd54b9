"""Embedded Generator: in ComfyUI's own classes it draws what it draws in diffusers."""

import comfyui_sampling as s
import numpy as np
import pytest
import torch
from comfyui_server import ExecutionError
from PIL import Image

from tastemaker.demo.generator import GUIDANCE_SCALE, load_pipeline
from tastemaker.demo.rewards import load_reward
from tastemaker.demo.shapes import COLOURS

pytestmark = pytest.mark.comfyui

STEPS = 20


def graph(prompt: str, n: int = 8, seed: int = 3, negative: str = "") -> dict:
    """Samples n pictures by Euler, at the timesteps 951, 901 ... 1; latents in "save", PNG in "png"."""
    made = dict(prompt=prompt, negative_prompt=negative)
    wires = dict(model=["gen", 0], positive=["gen", 1], negative=["gen", 2], cfg=GUIDANCE_SCALE)
    wires |= dict(add_noise=True, noise_seed=seed, latent_image=["empty", 0])
    wires |= dict(sampler=["euler", 0], sigmas=["sigmas", 0])
    scheduled = dict(model=["gen", 0], scheduler="ddim_uniform", steps=STEPS, denoise=1.0)
    return {
        "gen": s.node("TastemakerEmbeddedGenerator", **made),
        "empty": s.node("EmptyLatentImage", width=32, height=32, batch_size=n),
        "euler": s.node("KSamplerSelect", sampler_name="euler"),
        "sigmas": s.node("BasicScheduler", **scheduled),
        "sample": s.node("SamplerCustom", **wires),
        "save": s.node("SaveLatent", samples=["sample", 0], filename_prefix="embedded"),
        "decode": s.node("VAEDecode", samples=["sample", 0], vae=["gen", 3]),
        "png": s.node("SaveImage", images=["decode", 0], filename_prefix="embedded"),
    }


def pixels(files) -> np.ndarray:
    """[N, 32, 32, 3] in [0, 1]."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255


@pytest.mark.parametrize("prompt", ["a large red star on blue", "a shape", ""])
def test_it_draws_what_diffusers_draws(comfyui, prompt):
    from diffusers import EulerDiscreteScheduler

    pipe = load_pipeline()
    config = dict(pipe.scheduler.config, timestep_spacing="leading")
    pipe.scheduler = scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    # ComfyUI starts from the noise alone, as it does below the noisiest step; diffusers does not.
    start = noise * scheduler.sigmas[0] / scheduler.init_noise_sigma
    options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE, latents=start)
    how = dict(prompt=[prompt] * 2, negative_prompt=["a white circle"] * 2, **options)
    wanted = pipe(**how, output_type="latent").images
    drawn = pipe(**how, output_type="np").images
    entry = comfyui.run(graph(prompt, n=2, negative="a white circle"))
    found = s.latents(comfyui, entry) * s.FACTOR
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert np.abs(pixels(comfyui.files(entry, "png")) - drawn).max() < 1.5 / 255


def test_it_encodes_what_it_decodes(comfyui):
    nodes = graph("a large red star on blue", n=2)
    nodes["encode"] = s.node("VAEEncode", pixels=["decode", 0], vae=["gen", 3])
    nodes["again"] = s.node("VAEDecode", samples=["encode", 0], vae=["gen", 3])
    nodes["copies"] = s.node("SaveImage", images=["again", 0], filename_prefix="copies")
    entry = comfyui.run(nodes)
    pictures, copies = (pixels(comfyui.files(entry, node)) for node in ("png", "copies"))
    assert copies.shape == (2, 32, 32, 3) and np.abs(copies - pictures).mean() < 0.05


PALETTE = np.array(list(COLOURS.values()))


def nearest(colour: np.ndarray) -> str:
    return list(COLOURS)[int(np.square(PALETTE - colour).sum(1).argmin())]


def colours(picture: np.ndarray) -> tuple[str, str]:
    """Of the shape, as that of the pixels that differ most from the border; and of the ground."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    ground = np.median(border, axis=0)
    apart = np.square(picture - ground).sum(2)
    return nearest(np.median(picture[apart >= np.quantile(apart, 0.9)], axis=0)), nearest(ground)


@pytest.mark.parametrize("shape, ground", [("red", "blue"), ("yellow", "green"), ("blue", "white")])
def test_it_draws_the_colours_of_the_prompt(comfyui, shape, ground):
    entry = comfyui.run(graph(f"a large {shape} circle on {ground}"))
    found = [colours(picture) for picture in pixels(comfyui.files(entry, "png"))]
    assert len(found) == 8 and found.count((shape, ground)) >= 7, found


def test_its_scorers_are_those_of_the_demo(comfyui):
    nodes = graph("a shape")
    for name, output in (("guiding", 4), ("held-out", 5)):
        wires = dict(scorer=["gen", output], images=["decode", 0], preview=False)
        nodes[name] = s.node("TastemakerScoreImages", **wires)
        nodes[f"{name} dump"] = s.node("ProbeDump", name=name, value=[name, 2])
    entry = comfyui.run(nodes)
    images = torch.from_numpy(pixels(comfyui.files(entry, "png"))).permute(0, 3, 1, 2).float()
    for name in ("guiding", "held-out"):
        found, wanted = torch.tensor(s.dumped(comfyui, name)), load_reward(name)(images)
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)  # the files have 8 bits
        assert found.std() > 0.1


def test_it_needs_no_diffusers(comfyui):
    nodes = graph("a shape", seed=11)
    nodes["imported"] = s.node("ProbeImported", name="diffusers", after=["decode", 0])
    nodes["dump"] = s.node("ProbeDump", name="imported", value=["imported", 0])
    mark = comfyui.mark()
    comfyui.run(nodes)
    assert s.dumped(comfyui, "imported") == [False]
    said = comfyui.log(mark)
    assert "missing" not in said.lower() and "WARNING" not in said, said


def test_a_preview_of_other_latents_is_refused(comfyui):
    """Those of Stable Diffusion would show wrong colours."""
    nodes = graph("a shape")
    wires = dict(model=["gen", 0], scorer=["gen", 4], stop_on_gap=False)
    wires |= dict(strength=0.1, window_start=1.0, window_end=0.5)
    nodes["guided"] = s.node("TastemakerRewardGuidance", **wires)
    nodes["sample"]["inputs"]["model"] = ["guided", 0]
    with pytest.raises(ExecutionError, match="no linear preview: connect a VAE"):
        comfyui.run(nodes)
    wires["vae"] = ["gen", 3]
    comfyui.run({**nodes, "guided": s.node("TastemakerRewardGuidance", **wires)})
